import java.io.*;
import java.util.*;
import java.util.stream.*;
import org.neo4j.driver.*;
import org.neo4j.driver.Record;

/** Of the public cypher-shell, what scripts use: -u -p -a -d, NEO4J_USERNAME, NEO4J_PASSWORD, statements as an argument or
 * from standard input, each ended by `;` at the end of a line. Prints as --format plain does. */
public class CypherShell {
    public static void main(String[] args) throws Exception {
        Map<String, String> options = new HashMap<>(Map.of("-a", "bolt://localhost:7687"));
        options.put("-u", System.getenv().getOrDefault("NEO4J_USERNAME", "neo4j"));
        options.put("-p", System.getenv().getOrDefault("NEO4J_PASSWORD", ""));
        List<String> statements = new ArrayList<>();
        Map<String, String> names = Map.of("--username", "-u", "--password", "-p", "--address", "-a", "--uri", "-a",
                "--database", "-d", "--format", "--format");
        for (int i = 0; i < args.length; i++) {
            String name = names.getOrDefault(args[i], args[i]);
            if (List.of("-u", "-p", "-a", "-d", "--format").contains(name)) options.put(name, args[++i]);
            else if (!name.startsWith("--")) statements.add(name);
        }
        AuthToken auth = options.get("-p").isEmpty() ? AuthTokens.none()
                : AuthTokens.basic(options.get("-u"), options.get("-p"));
        SessionConfig session = options.containsKey("-d") ? SessionConfig.forDatabase(options.get("-d"))
                : SessionConfig.defaultConfig();
        java.util.logging.Logger.getLogger("org.neo4j.driver").setLevel(java.util.logging.Level.OFF);
        try (Driver driver = GraphDatabase.driver(options.get("-a"), auth); Session s = driver.session(session)) {
            driver.verifyConnectivity();
            if (statements.isEmpty()) {
                BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
                StringBuilder text = new StringBuilder();
                for (String line; (line = in.readLine()) != null;) {
                    text.append(line).append('\n');
                    if (line.stripTrailing().endsWith(";")) {
                        run(s, text.toString());
                        text.setLength(0);
                    }
                }
                statements.add(text.toString());
            }
            for (String statement : statements) run(s, statement);
        } catch (Exception e) {
            System.err.println(e.getMessage());
            System.exit(1);
        }
    }

    private static void run(Session session, String text) {
        String statement = text.strip();
        while (statement.endsWith(";")) statement = statement.substring(0, statement.length() - 1).strip();
        if (statement.isEmpty()) return;
        Result result = session.run(statement);
        if (result.keys().isEmpty()) {
            result.consume();
            return;
        }
        System.out.println(String.join(", ", result.keys()));
        while (result.hasNext()) {
            Record record = result.next();
            System.out.println(record.values().stream().map(Value::toString).collect(Collectors.joining(", ")));
        }
        System.out.flush();
    }
}
