//! Whether a server holds data: `recover` leaves it alone if it does.

use std::process::Stdio;

use backup_core::Evidence;

use crate::support::{Cluster, bench};

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn only_rows_are_data_and_a_server_in_use_tells_as_well() {
    let server = Cluster::start(&[]);
    for keys in ["", "capture = 'basebackup'"] {
        let held = async || -> Evidence { server.adapter(keys).data(&bench().cx()).await.unwrap() };
        let any = |e: &Evidence| e.counts.values().any(|n| *n > 0);
        assert!(!any(&held().await), "{keys}: {:?}", held().await);
        // What an application makes at its start, before it has any data.
        server.sql("postgres", "CREATE TABLE made (x int); CREATE ROLE app; CREATE SCHEMA own");
        assert!(!any(&held().await), "{keys}: {:?}", held().await);

        server.sql("postgres", "INSERT INTO made SELECT generate_series(1, 7)");
        assert_eq!(held().await.counts["rows.postgres"], 7, "{keys}");
        server.sql("postgres", "CREATE TABLE own.large AS SELECT generate_series(1, 150000) AS x");
        assert_eq!(held().await.counts["rows_at_least.postgres"], 100_007, "{keys}");

        let mut client = server.client("psql");
        let mut client = client.args(["-X", "-d", "postgres"]).stdin(Stdio::piped()).spawn().unwrap();
        assert_eq!(held().await.counts["rows_at_least.postgres"], 100_007, "{keys}");
        client.kill().unwrap();
        client.wait().unwrap();

        server.sql("postgres", "DROP TABLE made, own.large; SELECT lo_create(4711)");
        assert!(any(&held().await), "{keys}: {:?}", held().await);
        server.sql("postgres", "SELECT lo_unlink(4711); DROP SCHEMA own; DROP ROLE app");
    }
}
