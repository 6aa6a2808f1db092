//! RESTORE.md: the same with the command line of AWS.

use backup_core::{ArtifactMeta, HandContext, HandStep, shell_quote};

fn text<'a>(artifact: &'a ArtifactMeta, key: &str) -> Option<&'a str> {
    artifact.attributes.get(key)?.as_str()
}

fn number(artifact: &ArtifactMeta, key: &str) -> Option<i64> {
    artifact.attributes.get(key)?.as_i64()
}

pub(super) fn steps(backup: &HandContext<'_>) -> Vec<HandStep> {
    let artifacts: Vec<&ArtifactMeta> =
        backup.metadata.artifacts.iter().filter(|a| a.external.is_some()).collect();
    let external = |a: &ArtifactMeta| a.external.as_ref().map(|e| e.id.clone()).unwrap_or_default();
    let ids: Vec<String> = artifacts.iter().map(|a| shell_quote(&external(a))).collect();
    let region = artifacts.iter().find_map(|a| a.external.as_ref()?.location.get("region"));
    let region = region.map(|r| format!("export AWS_REGION={}\n", shell_quote(r))).unwrap_or_default();
    let look = format!(
        "{region}aws ec2 describe-snapshots --snapshot-ids {} \\\n  --query 'Snapshots[*].[SnapshotId,State,Progress,VolumeSize]' --output table",
        ids.join(" ")
    );
    let token = "TOKEN=$(curl -sX PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' http://169.254.169.254/latest/api/token)\n\
                 INSTANCE=$(curl -sH \"X-aws-ec2-metadata-token: $TOKEN\" http://169.254.169.254/latest/meta-data/instance-id)\n\
                 ZONE=$(curl -sH \"X-aws-ec2-metadata-token: $TOKEN\" http://169.254.169.254/latest/meta-data/placement/availability-zone)";
    let mut steps = vec![
        HandStep::new(
            "See whether the snapshots are completed.\nThe data is not in this directory: these snapshots hold it.",
            look,
        ),
        HandStep::new("On the instance that is to have the data, ask where it is.", token),
    ];
    for artifact in artifacts {
        let device = text(artifact, "device").unwrap_or("/dev/sdf");
        let boot = artifact.attributes.get("boot").and_then(serde_json::Value::as_bool).unwrap_or_default();
        let boots = if boot {
            ", which the instance booted from: skip it unless a file of the system is needed"
        } else {
            ""
        };
        let mut make = format!(
            "VOLUME=$(aws ec2 create-volume --snapshot-id {} --availability-zone \"$ZONE\"",
            shell_quote(&external(artifact))
        );
        if let Some(kind) = text(artifact, "volume_type") {
            make.push_str(&format!(" --volume-type {}", shell_quote(kind)));
        }
        for key in ["iops", "throughput"] {
            if let Some(value) = number(artifact, key) {
                make.push_str(&format!(" --{key} {value}"));
            }
        }
        // A device that is taken on the new instance is refused; the one it booted from is always taken.
        let at = if boot { "/dev/sdp" } else { device };
        let at_mount = text(artifact, "mounted_at").filter(|_| !boot).unwrap_or("/mnt/restored");
        make.push_str(&format!(
            " --query VolumeId --output text)\n\
             aws ec2 wait volume-available --volume-ids \"$VOLUME\"\n\
             aws ec2 attach-volume --volume-id \"$VOLUME\" --instance-id \"$INSTANCE\" --device {}",
            shell_quote(at)
        ));
        let frozen = artifact.attributes.get("frozen").and_then(|f| f.as_array());
        let places: Vec<&str> = frozen.into_iter().flatten().filter_map(|f| f.as_str()).collect();
        let still = match places.is_empty() {
            true => String::new(),
            false => format!("\nNobody wrote to {} while the snapshot began.", places.join(", ")),
        };
        steps.push(HandStep::new(format!("Make and attach the volume of {device}{boots}.{still}"), make));
        let find = format!(
            "DISK=/dev/$(lsblk -dno NAME,SERIAL | awk -v s=\"${{VOLUME/-/}}\" '$2 == s {{print $1}}')\n\
             lsblk -f \"$DISK\"\nmkdir -p {0}\n\
             mount \"$DISK\" {0}   # XFS whose twin is mounted here: mount -o nouuid; with partitions: the one that lsblk shows",
            shell_quote(at_mount)
        );
        steps.push(HandStep::new(
            "Find it by its serial number, and mount it.\nIts blocks are fetched when they are first read: it is slow at first.",
            find,
        ));
    }
    steps
}
