// Makes a container at an Azurite beside it: node make-container.js ACCOUNT KEY NAME
const { createHmac } = require("crypto");
const [account, key, name] = process.argv.slice(-3);
const headers = { "x-ms-date": new Date().toUTCString(), "x-ms-version": "2023-11-03", "content-length": 0 };
const path = `/${account}/${name}`;
const signed = ["PUT", ...Array(11).fill(""), `x-ms-date:${headers["x-ms-date"]}`, `x-ms-version:${headers["x-ms-version"]}`,
    `/${account}${path}`, "restype:container"].join("\n");
const mac = createHmac("sha256", Buffer.from(key, "base64")).update(signed).digest("base64");
headers.authorization = `SharedKey ${account}:${mac}`;
const options = { host: "127.0.0.1", port: 10000, method: "PUT", path: `${path}?restype=container`, headers };
require("http").request(options, (answer) => process.exit(answer.statusCode === 201 ? 0 : 1)).on("error", () => process.exit(2)).end();
