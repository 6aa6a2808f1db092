//! Counting what was restored.

use std::fs;
use std::os::unix::fs::MetadataExt;

use backup_core::{AdapterError, AdapterErrorKind, Answer, Evidence, OpContext, RestoreTarget};

use super::super::Neo4j;
use super::super::capture::DATA;
use super::super::proof::{self, Subject};
use super::super::{ask, places, server, tools};
use super::IMAGE;
use super::exchange::Done;
use super::record::read_record;
use crate::on_disk::{blocking, failed};
use crate::runtime::docker::Purpose;

/// Counts what is there, and asks it: a server that is started for that is started once.
pub(in crate::neo4j) async fn probe(
    neo4j: &Neo4j,
    cx: &OpContext,
    target: &RestoreTarget,
    questions: &[String],
) -> Result<(Evidence, Vec<Answer>), AdapterError> {
    let (dir, purpose) = match target {
        RestoreTarget::Live => {
            let found = probe_live(neo4j, cx).await?;
            let answers = match questions.is_empty() {
                true => Vec::new(),
                false => ask::of_live(neo4j, cx, questions).await?,
            };
            return Ok((found, answers));
        }
        RestoreTarget::Dir(dir) => (dir, Purpose::Work),
        RestoreTarget::Scratch(scratch) => (&scratch.dir, Purpose::Scratch),
        _ => return Err(AdapterError::unsupported("Neo4j cannot be counted there")),
    };
    places::same_host(&neo4j.server)?;
    let data = dir.join(DATA);
    let looked = data.clone();
    let owner = blocking(move || {
        fs::metadata(&looked).map(|m| (m.uid(), m.gid())).map_err(failed("look at", &looked))
    });
    let (uid, gid) = owner.await?;
    let image = match places::inspect(&neo4j.server, cx).await {
        Ok(_) if purpose == Purpose::Work => None,
        Ok(_) => read_record::<String>(&dir.join(IMAGE)).await?,
        Err(e) if e.kind() == AdapterErrorKind::NotFound => read_record::<String>(&dir.join(IMAGE)).await?,
        Err(e) => return Err(e),
    };
    let user = format!("{uid}:{gid}");
    let major = server::major(&tools::version(&neo4j.server, cx, image.clone(), purpose).await?);
    let subject =
        Subject { called: "restored", data, transactions: None, user, image, major, home: None, purpose };
    proof::prove_and_ask(&neo4j.server, cx, &subject, proof::Also::Check, questions).await
}

async fn probe_live(neo4j: &Neo4j, cx: &OpContext) -> Result<Evidence, AdapterError> {
    let counted = async {
        let mut bolt = neo4j.server.connect(cx).await?;
        let databases = server::databases(cx, &mut bolt).await?;
        let evidence = server::evidence(cx, &mut bolt, &databases).await;
        bolt.close(cx).await;
        evidence
    };
    // Writers may have gone on since: what this very run has restored was counted when it came up.
    let done = read_record::<Done>(&cx.kept.join(format!("{}.done.json", cx.run_id))).await?;
    match done {
        Some(done) => Ok(done.evidence),
        None => counted.await,
    }
}
