//! File systems stand still while their snapshots begin, and never longer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::{InterruptionEntry, Replay};
use backup_core::state::FileJournal;
use backup_core::testkit::adapter_suite::{Captured, capture};
use backup_core::{
    AdapterError, AdapterErrorKind as Kind, Consistency, HandContext, OpContext, ServiceAdapter as _, chain,
};
use tempfile::TempDir;
use tokio::sync::Barrier;
use tokio::time::Instant;

use crate::disk::{Disk, Writer, freeze_line};
use crate::proxy::{Fate, Proxy};
use crate::support::{Account, context, moto};

/// An operation with a spool and a journal in `dir`.
fn operation(dir: &Path) -> OpContext {
    let mut cx = context("daily");
    cx.spool = dir.join("spool");
    cx.kept = dir.join("kept");
    std::fs::create_dir_all(&cx.spool).unwrap();
    cx.journal = Arc::new(FileJournal::new(dir.join("interruptions")));
    cx
}

/// An EC2 that gets `CreateSnapshots` only when the test lets it go.
async fn held() -> (Proxy, Arc<Barrier>) {
    let gate = Arc::new(Barrier::new(2));
    let hold = Arc::clone(&gate);
    let proxy = Proxy::start(moto().address, move |action, _| match action {
        "CreateSnapshots" => Fate::Hold(Arc::clone(&hold)),
        _ => Fate::Pass,
    });
    (proxy.await, gate)
}

/// Captures with `keys`, with a request that is held while `meanwhile` looks around.
async fn held_while<T: Send + 'static>(
    account: &Account,
    cx: &OpContext,
    keys: &str,
    meanwhile: impl FnOnce() -> T + Send + 'static,
) -> (Result<Captured, AdapterError>, T) {
    let (proxy, gate) = held().await;
    let adapter = account.adapter(proxy.address, keys);
    let looked = async {
        gate.wait().await;
        let seen = tokio::task::spawn_blocking(meanwhile).await.unwrap();
        gate.wait().await;
        seen
    };
    tokio::join!(capture(&adapter, cx), looked)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: moto in a container, root and loop devices"]
async fn writes_stand_still_until_the_snapshots_have_begun_and_go_on_after() {
    let (account, dir) = (Account::new().await, TempDir::new().unwrap());
    let (ext4, xfs) = (Disk::ext4(), Disk::xfs());
    let writers = [Writer::on(&ext4), Writer::on(&xfs)];
    let cx = operation(dir.path());
    let journal = Arc::clone(&cx.journal);
    let (captured, (still, writers)) = held_while(&account, &cx, &freeze_line(&[&ext4, &xfs]), move || {
        (writers.iter().all(Writer::stands_still), writers)
    })
    .await;
    assert!(still, "somebody wrote");
    for writer in &writers {
        writer.goes_on();
    }
    let captured = captured.unwrap();
    assert!(!ext4.is_frozen() && !xfs.is_frozen());
    let report = &captured.report;
    // A database is as after a crash all the same: nobody asked it.
    assert_eq!(report.consistency, Consistency::CrashConsistent);
    assert_eq!(report.mode, "create-snapshots-frozen");
    assert!((450..10_000).contains(&report.interruption_ms), "{} ms", report.interruption_ms);
    let note = format!("{}, {}", ext4.path().display(), xfs.path().display());
    assert_eq!(report.evidence.notes.get("frozen"), Some(&note));
    // A loop device is no volume.
    assert_eq!(report.warnings.iter().filter(|w| w.contains("does not tell")).count(), 2);
    assert_eq!(journal.entries().await.unwrap(), []);
    // Of a volume that is known, the instructions say so.
    let mut metadata = (*captured.metadata).clone();
    metadata.artifacts[0].attributes.insert("frozen".to_owned(), serde_json::json!(["/mnt/data"]));
    let steps = account.adapter(moto().address, "").by_hand(&HandContext { metadata: &metadata });
    let told = steps.iter().filter(|s| s.text.contains("Nobody wrote to /mnt/data while")).count();
    assert_eq!(told, 1, "{steps:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: moto in a container, root and loop devices"]
async fn an_error_of_ec2_thaws_and_a_lost_answer_proves_nothing() {
    let (account, dir) = (Account::new().await, TempDir::new().unwrap());
    let disk = Disk::ext4();
    let writer = Writer::on(&disk);
    for fate in [Fate::Refuse("UnauthorizedOperation", "You are not authorized."), Fate::LoseAnswer] {
        let refused = matches!(fate, Fate::Refuse(..));
        let proxy = Proxy::start(moto().address, move |action, _| match action {
            "CreateSnapshots" => fate.clone(),
            _ => Fate::Pass,
        })
        .await;
        let cx = operation(dir.path());
        let captured = capture(&account.adapter(proxy.address, &freeze_line(&[&disk])), &cx).await;
        assert!(!disk.is_frozen());
        writer.goes_on();
        assert_eq!(cx.journal.entries().await.unwrap(), []);
        if refused {
            assert_eq!(captured.err().unwrap().kind(), Kind::PermissionDenied);
            continue;
        }
        let report = captured.unwrap().report;
        assert_eq!(report.mode, "create-snapshots");
        assert!(report.warnings.iter().any(|w| w.contains("went on before")), "{:?}", report.warnings);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: moto in a container, root and loop devices"]
async fn who_writes_does_not_wait_for_a_slow_answer() {
    let (account, dir) = (Account::new().await, TempDir::new().unwrap());
    let disk = Disk::xfs();
    let writer = Writer::on(&disk);
    let keys = format!("{}max_interruption = '1s'\n", freeze_line(&[&disk]));
    let (captured, took) =
        held_while(&account, &operation(dir.path()), &keys, move || writer.goes_on()).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let report = captured.unwrap().report;
    assert_eq!(
        (report.mode.as_str(), report.consistency),
        ("create-snapshots", Consistency::CrashConsistent)
    );
    assert!(report.interruption_ms >= 500, "{}", report.interruption_ms);
    assert!(report.warnings.iter().any(|w| w.contains("went on before")), "{:?}", report.warnings);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: moto in a container, root and loop devices"]
async fn a_cancelled_run_thaws_at_once_and_hears_what_it_asked_for() {
    let (account, dir) = (Account::new().await, TempDir::new().unwrap());
    let disk = Disk::ext4();
    let writer = Writer::on(&disk);
    let cx = operation(dir.path());
    let cancel = cx.cancel.clone();
    let (captured, took) = held_while(&account, &cx, &freeze_line(&[&disk]), move || {
        cancel.cancel();
        writer.goes_on()
    })
    .await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(captured.err().unwrap().kind(), Kind::Cancelled);
    assert_eq!(account.snapshots().await.len(), 0, "the set was removed");
    assert_eq!(cx.journal.entries().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: moto in a container, root and loop devices"]
async fn one_that_somebody_else_has_frozen_is_refused_and_left_frozen() {
    let (account, dir) = (Account::new().await, TempDir::new().unwrap());
    let (ours, theirs) = (Disk::ext4(), Disk::xfs());
    theirs.freeze();
    let proxy = Proxy::start(moto().address, |_, _| Fate::Pass).await;
    let adapter = account.adapter(proxy.address, &freeze_line(&[&ours, &theirs]));
    let cx = operation(dir.path());
    let e = capture(&adapter, &cx).await.err().unwrap();
    assert!(theirs.is_frozen() && !ours.is_frozen());
    theirs.thaw();
    assert_eq!(e.kind(), Kind::Conflict);
    assert!(chain(&e).contains("somebody else has frozen it already"), "{}", chain(&e));
    assert!(chain(&e).contains(theirs.path().to_str().unwrap()), "{}", chain(&e));
    assert!(chain(&e).contains("fsfreeze --unfreeze"), "it says what to do: {}", chain(&e));
    assert_eq!(proxy.seen("CreateSnapshots").len(), 0);
    assert_eq!(cx.journal.entries().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: moto in a container, root and loop devices"]
async fn what_has_to_go_on_is_refused_before_anything_is_done() {
    let (account, dir) = (Account::new().await, TempDir::new().unwrap());
    let disk = Disk::ext4();
    let (elsewhere, inside) = (Disk::bind(&disk), Disk::inside(&disk));
    let memory = Disk::tmpfs();
    std::fs::create_dir(disk.path().join("sub")).unwrap();
    let proxy = Proxy::start(moto().address, |_, _| Fate::Pass).await;
    let refusal = async |keys: String, change: &dyn Fn(&mut OpContext)| {
        let mut cx = operation(dir.path());
        change(&mut cx);
        let adapter = account.adapter(proxy.address, &keys);
        let checked = adapter.check(&cx).await.err();
        let e = adapter.open(&cx).await.err().unwrap();
        assert_eq!(checked.map(|e| chain(&e)), Some(chain(&e)), "`check` says the same");
        assert!(chain(&e).contains("; ") && !chain(&e).contains('\n'), "{}", chain(&e));
        chain(&e)
    };
    let line = || freeze_line(&[&disk]);
    let nothing = |_: &mut OpContext| {};
    let keep = |path: std::path::PathBuf| move |cx: &mut OpContext| cx.excluded = vec![path.clone()];
    let store = "a store or the state directory";
    for (keys, change, says) in [
        ("freeze = ['/']\n".to_owned(), &nothing as &dyn Fn(&mut OpContext), "the root file system"),
        (format!("freeze = ['{}']\n", disk.path().join("sub").display()), &nothing, "no mount point"),
        (freeze_line(&[&disk, &elsewhere]), &nothing, "the same file system"),
        (line(), &keep(disk.path().join("state/not/yet")), store),
        (line(), &keep(elsewhere.path().join("state")), store),
        (line(), &keep(inside.path()), store),
        (line(), &|cx| cx.spool = disk.path().join("spool"), "the temporary files of this run"),
    ] {
        let refused = refusal(keys, change).await;
        assert!(refused.contains(says), "{says}: {refused}");
    }
    // Only trying tells that a file system cannot be frozen: the one before it is thawed.
    let adapter = account.adapter(proxy.address, &freeze_line(&[&disk, &memory]));
    let e = capture(&adapter, &operation(dir.path())).await.err().unwrap();
    assert_eq!(e.kind(), Kind::Unsupported);
    assert!(chain(&e).contains(memory.path().to_str().unwrap()), "{}", chain(&e));
    assert!(chain(&e).contains("take it out of `freeze`"), "{}", chain(&e));
    assert!(!disk.is_frozen());
    assert_eq!(proxy.seen("CreateSnapshots").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: moto in a container, root and loop devices"]
async fn nobody_waits_when_the_host_goes_away() {
    let (account, dir) = (Account::new().await, TempDir::new().unwrap());
    let disk = Disk::ext4();
    let writer = Writer::on(&disk);
    let mut cx = operation(dir.path());
    cx.last_chance = true;
    let (captured, still) =
        held_while(&account, &cx, &freeze_line(&[&disk]), move || writer.stands_still()).await;
    let report = captured.unwrap().report;
    assert!(!still && report.interruption_ms == 0);
    assert!(report.warnings.iter().any(|w| w.contains("the host goes away")), "{:?}", report.warnings);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: moto in a container, root and loop devices"]
async fn whoever_thaws_in_its_place_does_so_until_the_run_is_over() {
    let (account, dir) = (Account::new().await, TempDir::new().unwrap());
    let disk = Disk::ext4();
    let writer = Writer::on(&disk);
    let cx = operation(dir.path());
    let (proxy, gate) = held().await;
    let adapter = account.adapter(proxy.address, &freeze_line(&[&disk]));
    let instead = async {
        gate.wait().await;
        let entry: InterruptionEntry = cx.journal.entries().await.unwrap().pop().unwrap();
        assert_eq!(entry.kind.to_string(), format!("froze {}", disk.path().display()));
        assert!(cx.journal.take_over(&entry).await.unwrap());
        let mut late = operation(dir.path());
        late.deadline = Some(Instant::now() + Duration::from_secs(2));
        let (again, went_on) = tokio::join!(adapter.bring_back(&late, &entry), async {
            tokio::task::spawn_blocking(move || writer.goes_on()).await.unwrap()
        });
        // The run holds its claim: it could freeze again.
        assert_eq!(again.unwrap_err().kind(), Kind::Timeout);
        gate.wait().await;
        (entry, went_on)
    };
    let (captured, (entry, went_on)) = tokio::join!(capture(&adapter, &cx), instead);
    assert!(went_on < Duration::from_secs(1), "{went_on:?}");
    let e = captured.err().unwrap();
    assert!(chain(&e).contains("brought back by the watchdog"), "{}", chain(&e));
    assert_eq!(account.snapshots().await.len(), 0, "a set of two moments is of no use");

    // As after a kill: now it is over, and what is still frozen is ours.
    disk.freeze();
    let later = operation(dir.path());
    assert_eq!(adapter.bring_back(&later, &entry).await.unwrap(), Replay::Undone);
    assert_eq!(adapter.bring_back(&later, &entry).await.unwrap(), Replay::NothingToDo);
    // A program of the dead run is still to freeze: it has the claim.
    let claim = std::fs::File::open(cx.spool.join("frozen")).unwrap();
    rustix::fs::flock(&claim, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut orphan = std::process::Command::new("sh");
    orphan.args(["-c", "sleep 1; exec fsfreeze --freeze \"$0\""]).arg(disk.path()).stdin(claim);
    let mut child = orphan.spawn().unwrap();
    drop(orphan);
    assert_eq!(adapter.bring_back(&later, &entry).await.unwrap(), Replay::Undone);
    assert!(child.try_wait().unwrap().is_some_and(|ended| ended.success()), "it has frozen");
    assert!(!disk.is_frozen());
    // A restart thaws: what is frozen since is somebody else's.
    disk.freeze();
    let mut before = entry;
    "another".clone_into(&mut before.place.boot_id);
    assert_eq!(adapter.bring_back(&later, &before).await.unwrap(), Replay::NothingToDo);
    assert!(disk.is_frozen());
}
