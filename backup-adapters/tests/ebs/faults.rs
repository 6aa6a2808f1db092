//! What EC2 refuses, and what is said about it.

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, ServiceAdapter as _, advice, chain};

use crate::proxy::{Fate, Proxy};
use crate::support::{Account, ID, SECRET, context, moto};

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn quotas_and_permissions_are_named_and_leave_nothing() {
    let account = Account::new().await;
    for (at, code, words, kind, says, help) in [
        (
            "CreateSnapshots",
            "SnapshotLimitExceeded",
            "Too many.",
            AdapterErrorKind::NoSpace,
            "no more snapshots",
            "backup ebs prune",
        ),
        (
            "CreateSnapshots",
            "ConcurrentSnapshotLimitExceeded",
            "Too many.",
            AdapterErrorKind::Unavailable,
            "same time",
            "wait",
        ),
        (
            "CreateSnapshots",
            "UnauthorizedOperation",
            "You are not authorized to perform this operation.",
            AdapterErrorKind::PermissionDenied,
            "`ec2:CreateSnapshots` is missing",
            r#""Action":"ec2:CreateSnapshots""#,
        ),
        (
            "DescribeInstances",
            "UnauthorizedOperation",
            "You are not authorized to perform this operation.",
            AdapterErrorKind::PermissionDenied,
            "`ec2:DescribeInstances` is missing",
            r#""Action":"ec2:DescribeInstances""#,
        ),
        (
            "DescribeInstances",
            "AuthFailure",
            "AWS was not able to validate.",
            AdapterErrorKind::PermissionDenied,
            "does not accept",
            "access_key_id",
        ),
    ] {
        let proxy =
            Proxy::start(
                moto().address,
                move |action, _| {
                    if action == at { Fate::Refuse(code, words) } else { Fate::Pass }
                },
            )
            .await;
        let e = capture(&account.adapter(proxy.address, ""), &context("daily")).await.err().unwrap();
        assert_eq!(e.kind(), kind, "{code}: {}", chain(&e));
        assert!(chain(&e).contains(says) && !chain(&e).contains('\n'), "{code}: {}", chain(&e));
        assert!(advice(&e).is_some_and(|a| a.contains(help)), "{code}: {:?}", advice(&e));
        let all = format!("{e:?} {}", chain(&e));
        assert!(!all.contains(ID) && !all.contains(SECRET), "{all}");
        assert_eq!(proxy.seen(at).len(), 1, "{code}: what is refused is not asked for again");
    }
    assert_eq!(account.snapshots().await.len(), 0);
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn too_soon_is_waited_for() {
    let account = Account::new().await;
    let mut first = true;
    let proxy = Proxy::start(moto().address, move |action, _| {
        if action == "CreateSnapshots" && std::mem::take(&mut first) {
            return Fate::Refuse("SnapshotCreationPerVolumeRateExceeded", "Slow down.");
        }
        Fate::Pass
    })
    .await;
    let began = std::time::Instant::now();
    capture(&account.adapter(proxy.address, ""), &context("daily")).await.unwrap();
    assert!(began.elapsed() >= std::time::Duration::from_secs(15));
    assert_eq!((proxy.seen("CreateSnapshots").len(), account.snapshots().await.len()), (2, 2));
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_missing_right_to_tag_costs_no_backup() {
    let account = Account::new().await;
    let proxy = Proxy::start(moto().address, |action, _| match action {
        "CreateTags" => Fate::Refuse("UnauthorizedOperation", "You are not authorized."),
        _ => Fate::Pass,
    })
    .await;
    let adapter = account.adapter(proxy.address, "");
    let captured = capture(&adapter, &context("daily")).await.unwrap();
    assert!(
        captured.report.warnings.iter().any(|w| w.contains("ec2:CreateTags")),
        "{:?}",
        captured.report.warnings
    );
    let sets = adapter.sets(&context("daily")).await.unwrap();
    let devices: Vec<_> = sets[0].snapshots.iter().filter_map(|s| s.device()).collect();
    assert!(devices.contains(&"/dev/sdf") && devices.len() == 2, "the set knows them: {devices:?}");
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn an_instance_or_volume_that_is_not_there_is_named() {
    let account = Account::new().await;
    let e = account
        .adapter(moto().address, "volumes = ['/dev/sdz']\n")
        .check(&context("daily"))
        .await
        .unwrap_err();
    assert!(
        chain(&e).contains("/dev/sdz is not attached") && chain(&e).contains("/dev/sdf"),
        "{}",
        chain(&e)
    );
    let elsewhere = Account { instance: "i-0123456789abcdef0".to_owned(), ..account };
    let e = elsewhere.adapter(moto().address, "").check(&context("daily")).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{}", chain(&e));
    assert!(chain(&e).contains("i-0123456789abcdef0"), "{}", chain(&e));
}
