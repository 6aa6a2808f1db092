//! Each call of EC2 that is made, refused: by a policy, or by a quota.

use backup_adapters::ebs::{Ebs, Host, RestoreOf};
use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterError, AdapterErrorKind, OpContext, ServiceAdapter as _, advice, chain};

use crate::proxy::{Fate, Proxy};
use crate::support::{Account, ID, SECRET, context, moto};

/// What AWS says, with the blob that only it can read.
const NOT_ALLOWED: &str = "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/b is not \
                           authorized to perform this. Encoded authorization failure message: 4rJ0cLx8Zg2vQ";

async fn refusing(at: &'static str, code: &'static str, words: &'static str) -> Proxy {
    let plan = move |action: &str, _: &str| if action == at { Fate::Refuse(code, words) } else { Fate::Pass };
    Proxy::start(moto().address, plan).await
}

fn plain(e: &AdapterError) -> String {
    let said = chain(e);
    assert!(!said.contains('\n') && !said.contains("4rJ0cLx8Zg2vQ"), "one line, and no blob: {said}");
    for secret in [ID, SECRET] {
        assert!(!format!("{said} {e:?}").contains(secret), "{e:?}");
    }
    said
}

/// What needs each call, through an EC2 that refuses that call alone.
async fn needs(what: &'static str, account: &Account, ebs: &Ebs) -> Result<(), AdapterError> {
    let (cx, host) = (context("daily"), Host::at("/nonexistent"));
    let direct = account.adapter(moto().address, "");
    let onto = RestoreOf { instance: Some(account.instance.clone()), ..RestoreOf::default() };
    match what {
        "capture" => capture(ebs, &cx).await.map(drop),
        "check" => ebs.check(&cx).await,
        "ending" => ebs.ending_with_the_instance(&cx).await.map(drop),
        "list" => ebs.sets(&cx).await.map(drop),
        "state" => {
            let made = capture(&direct, &cx).await?;
            ebs.external_state(&cx, &made.metadata).await.map(drop)
        }
        "delete" => {
            capture(&direct, &cx).await?;
            let set = direct.sets(&cx).await?.swap_remove(0);
            ebs.delete_set(&cx, &set).await
        }
        "reclaim" => {
            capture(&direct, &cx).await?;
            ebs.reclaim_external(&cx, std::slice::from_ref(&cx.run_id)).await.map(drop)
        }
        "plan" => ebs.plan_restore_of(&context("manual"), &host, &onto).await.map(drop),
        _ => {
            let plan = direct.plan_restore_of(&context("manual"), &host, &onto).await?;
            ebs.restore(&context("manual"), &host, &plan, &|_| ()).await.map(drop)
        }
    }
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn each_permission_that_is_missing_is_named_and_asked_for_once() {
    let account = Account::new().await;
    capture(&account.adapter(moto().address, ""), &context("daily")).await.unwrap();
    for (action, what) in [
        ("DescribeInstances", "check"),
        ("DescribeInstances", "ending"),
        ("DescribeInstances", "plan"),
        ("DescribeVolumes", "capture"),
        ("DescribeVolumes", "plan"),
        ("DescribeSnapshots", "list"),
        ("DescribeSnapshots", "state"),
        ("DescribeSnapshots", "plan"),
        ("DescribeSnapshots", "reclaim"),
        ("DeleteSnapshot", "delete"),
        ("DeleteSnapshot", "reclaim"),
        ("CreateVolume", "restore"),
        ("AttachVolume", "restore"),
    ] {
        let proxy = refusing(action, "UnauthorizedOperation", NOT_ALLOWED).await;
        let before = (account.snapshots().await.len(), account.restored().await.len());
        let e = needs(what, &account, &account.adapter(proxy.address, "")).await.unwrap_err();
        let said = plain(&e);
        assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{action}, {what}: {said}");
        assert!(
            said.contains(&format!("the permission `ec2:{action}` is missing")),
            "{action}, {what}: {said}"
        );
        let help = advice(&e).unwrap_or_else(|| panic!("{action}, {what}: {e:?}"));
        let statement = help.split_once(": ").unwrap().1;
        let statement: serde_json::Value = serde_json::from_str(statement).unwrap();
        assert_eq!(statement["Action"], format!("ec2:{action}"), "{what}");
        assert_eq!(proxy.seen(action).len(), 1, "{action}, {what}: what is refused is not asked for again");
        let after = (account.snapshots().await.len(), account.restored().await.len());
        // What is made for a call that comes later stays for it: a set that is to be deleted, a volume that is to be attached.
        let begun = match (action, what) {
            ("DeleteSnapshot", _) | (_, "state" | "reclaim") => (2, 0),
            ("AttachVolume", _) => (0, 1),
            _ => (0, 0),
        };
        assert_eq!(after, (before.0 + begun.0, before.1 + begun.1), "{action}, {what}");
    }
}

/// Its tag stays, and somebody is told: the volume is there all the same.
#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_missing_right_to_remove_tags_costs_no_restore() {
    let account = Account::new().await;
    let adapter = account.adapter(moto().address, "");
    capture(&adapter, &context("daily")).await.unwrap();
    let host = Host::at("/nonexistent");
    let onto = RestoreOf { instance: Some(account.instance.clone()), ..RestoreOf::default() };
    let plan = adapter.plan_restore_of(&context("manual"), &host, &onto).await.unwrap();
    let proxy = refusing("DeleteTags", "UnauthorizedOperation", NOT_ALLOWED).await;
    let told = std::sync::Mutex::new(Vec::new());
    let step = |said: String| told.lock().unwrap().push(said);
    let through = account.adapter(proxy.address, "");
    let restored = through.restore(&context("manual"), &host, &plan, &step).await.unwrap();
    let made = account.restored().await;
    assert_eq!((made.len(), made[0].volume_id()), (1, Some(restored[0].volume.as_str())));
    assert_eq!(made[0].attachments()[0].instance_id(), Some(account.instance.as_str()));
    let told = told.into_inner().unwrap();
    let last = told.last().unwrap();
    assert!(last.contains("all is done, but") && last.contains("`ec2:DeleteTags` is missing"), "{told:?}");
}

/// With one volume made and no room for the second: what is made waits for the next attempt, which makes only the other.
#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_restore_over_its_quota_says_so_and_goes_on_later() {
    let account = Account::new().await;
    account.new_volume("/dev/sdg").await;
    let direct = account.adapter(moto().address, "boot = false\n");
    capture(&direct, &context("daily")).await.unwrap();
    let (instance, _) = account.new_instance().await;
    let host = Host::at("/nonexistent");
    let onto = RestoreOf { instance: Some(instance), ..RestoreOf::default() };
    for (code, made) in [("VolumeLimitExceeded", 1), ("MaxIOPSLimitExceeded", 1)] {
        let mut left = 1 - account.restored().await.len();
        let proxy = Proxy::start(moto().address, move |action, _| match action {
            "CreateVolume" if left == 0 => Fate::Refuse(code, "You have exceeded your volume limit."),
            "CreateVolume" => {
                left -= 1;
                Fate::Pass
            }
            _ => Fate::Pass,
        })
        .await;
        let adapter = account.adapter(proxy.address, "");
        let plan = adapter.plan_restore_of(&context("manual"), &host, &onto).await.unwrap();
        assert_eq!(plan.volumes.len(), 2);
        let e = adapter.restore(&context("manual"), &host, &plan, &|_| ()).await.unwrap_err();
        let said = plain(&e);
        assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{code}: {said}");
        assert!(said.contains("may have no more volumes like this"), "{code}: {said}");
        assert!(advice(&e).is_some_and(|help| help.contains("Service Quotas")), "{e:?}");
        assert_eq!(account.restored().await.len(), made, "{code}");
    }
    let plan = direct.plan_restore_of(&context("manual"), &host, &onto).await.unwrap();
    assert_eq!(plan.volumes.iter().filter(|v| v.existing.is_some()).count(), 1, "{plan:#?}");
    direct.restore(&context("manual"), &host, &plan, &|_| ()).await.unwrap();
    let restored = account.restored().await;
    assert_eq!(restored.len(), 2, "no third one");
    assert!(restored.iter().all(|v| v.attachments().len() == 1), "{restored:#?}");
}

/// EC2 answers, and one of the set is in error already: the backup fails, and the whole set goes.
#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_set_with_a_snapshot_in_error_is_no_backup_and_leaves_nothing() {
    let account = Account::new().await;
    let proxy = Proxy::start(moto().address, |action, _| match action {
        "CreateSnapshots" => Fate::Rewrite("<progress>", "<state>error</state><progress>", 1),
        _ => Fate::Pass,
    })
    .await;
    let cx: OpContext = context("daily");
    let e = capture(&account.adapter(proxy.address, ""), &cx).await.err().unwrap();
    let said = plain(&e);
    assert!(said.contains("is in error: the set is of no use") && said.contains("snap-"), "{said}");
    assert_eq!(account.snapshots().await.len(), 0, "both were removed");
    let one = account.adapter(moto().address, "volumes = ['/dev/sdf']\n");
    capture(&one, &context("daily")).await.unwrap();
    assert_eq!(account.snapshots().await.len(), 1, "the next one is like any other");
}
