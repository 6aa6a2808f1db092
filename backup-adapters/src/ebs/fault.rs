//! What the answers of EC2 mean, and what to do about them.

use std::error::Error;
use std::fmt;

use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use backup_core::{AdapterError, AdapterErrorKind as Kind, Advice, chain};

/// A call that did not succeed.
#[derive(Debug)]
pub(super) struct Fault {
    /// `UnauthorizedOperation` and the like; empty if no answer came.
    pub(super) code: String,
    message: String,
    status: u16,
}

impl Fault {
    pub(super) fn of<E>(e: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let status = e.raw_response().map_or(0, |r| r.status().as_u16());
        let message = match e.message() {
            Some(message) => message.trim_end_matches('.').to_owned(),
            None => deepest(e),
        };
        Self { code: e.code().unwrap_or_default().to_owned(), message, status }
    }

    /// Whether it is certain that nothing was done: EC2 refused it. Otherwise only the answer may have been lost.
    pub(super) fn is_refusal(&self) -> bool {
        (400..500).contains(&self.status) && !self.code.is_empty()
    }

    /// Asked too often, or too much at once: after a while it may do it.
    pub(super) fn is_throttled(&self) -> bool {
        matches!(self.code.as_str(), "RequestLimitExceeded" | "Throttling" | "ThrottlingException")
    }

    pub(super) fn is_too_soon(&self) -> bool {
        self.code == "SnapshotCreationPerVolumeRateExceeded"
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.code.as_str(), "InvalidSnapshot.NotFound" | "InvalidSnapshotID.NotFound")
    }

    /// The error of `what` (an infinitive phrase), which calls `action`.
    pub(super) fn during(self, what: impl Into<String>, action: &str) -> AdapterError {
        let what = format!("cannot {}", what.into());
        let (kind, said, help) = match (self.code.as_str(), self.status) {
            ("UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException", _) => {
                let missing = self.missing().unwrap_or_else(|| format!("ec2:{action}"));
                let statement = format!(r#"{{"Effect":"Allow","Action":"{missing}","Resource":"*"}}"#);
                (
                    Kind::PermissionDenied,
                    format!("the permission `{missing}` is missing"),
                    format!("add to the policy: {statement}"),
                )
            }
            ("AuthFailure" | "InvalidClientTokenId" | "SignatureDoesNotMatch" | "IncompleteSignature", _) => (
                Kind::PermissionDenied,
                "EC2 does not accept these keys".to_owned(),
                "correct `access_key_id` and `secret_access_key`, or where they are taken from; a clock that is wrong by 5 minutes \
                 has the same effect"
                    .to_owned(),
            ),
            ("RequestExpired" | "ExpiredToken" | "ExpiredTokenException", _) => (
                Kind::PermissionDenied,
                "the keys are not valid any more".to_owned(),
                "renew them; if they are new, compare this host's clock: `timedatectl status`".to_owned(),
            ),
            ("SnapshotLimitExceeded", _) => (
                Kind::NoSpace,
                "the account may have no more snapshots in this region".to_owned(),
                "`backup ebs prune` deletes old ones; Service Quotas, `Snapshots per Region`, allows more".to_owned(),
            ),
            ("ConcurrentSnapshotLimitExceeded", _) => (
                Kind::Unavailable,
                "too many snapshots of a volume are being made at the same time".to_owned(),
                "wait until some are completed (`backup ebs list` tells), or ask for more in Service Quotas".to_owned(),
            ),
            ("SnapshotCreationPerVolumeRateExceeded", _) => (
                Kind::Unavailable,
                "the last snapshot of a volume was begun less than 15 seconds ago".to_owned(),
                "try again a little later".to_owned(),
            ),
            ("VolumeLimitExceeded" | "MaxIOPSLimitExceeded", _) => (
                Kind::NoSpace,
                "the account may have no more volumes like this in this region".to_owned(),
                "delete volumes that nobody uses, or ask for more in Service Quotas, Amazon EBS".to_owned(),
            ),
            ("InvalidSnapshot.InUse", _) => (
                Kind::Conflict,
                "an AMI uses the snapshot".to_owned(),
                format!("deregister the AMI first, if nobody needs it ({})", self.message),
            ),
            ("InvalidVolume.ZoneMismatch", _) => (
                Kind::Conflict,
                "the volume is in another availability zone than the instance".to_owned(),
                "restore with `--az` of the instance".to_owned(),
            ),
            ("VolumeInUse", _) => (
                Kind::Conflict,
                "the volume is attached elsewhere, or the device is taken".to_owned(),
                "name another one with `--device`".to_owned(),
            ),
            ("RequestLimitExceeded" | "Throttling" | "ThrottlingException", _) => (
                Kind::Unavailable,
                "EC2 is asked too often".to_owned(),
                "try again later; other programs of the account ask, too".to_owned(),
            ),
            (code, _) if code.ends_with(".NotFound") || code.ends_with(".Malformed") => (
                Kind::NotFound,
                self.message.clone(),
                "compare the id, `region` and the account of the keys".to_owned(),
            ),
            ("", _) if self.message.contains("credentials") => (
                Kind::PermissionDenied,
                "there are no keys".to_owned(),
                "give the instance a role, or set `access_key_id` and `secret_access_key` of the service".to_owned(),
            ),
            ("", 0) => (
                Kind::Unavailable,
                format!("EC2 does not answer: {}", self.message),
                "compare `region` and `endpoint`, and whether this host reaches them".to_owned(),
            ),
            (_, 500..) => return AdapterError::new(Kind::Unavailable, what).with_source(self),
            _ => return AdapterError::new(Kind::Other, what).with_source(self),
        };
        let told = !self.code.is_empty() && said != self.message;
        let advice = Advice::new(said, help);
        AdapterError::new(kind, what).with_source(if told { advice.with_source(self) } else { advice })
    }

    /// AWS names what is missing where it is not what the call is called by: that of a tag, above all.
    fn missing(&self) -> Option<String> {
        let (_, rest) = self.message.split_once("not authorized to perform: ")?;
        let action = rest.split([' ', ',']).next()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == ':';
        (!action.is_empty() && action.chars().all(plain)).then(|| action.to_owned())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EC2 answers ")?;
        if self.code.is_empty() {
            return write!(f, "{}: {}", self.status, self.message);
        }
        f.write_str(&self.code)?;
        // It ends in a blob of some hundred letters, which only AWS can read.
        let message = self.message.split(". Encoded authorization").next().unwrap_or_default();
        if message.is_empty() || message == self.code { Ok(()) } else { write!(f, ", {message}") }
    }
}

impl Error for Fault {}

/// Of what the client says, the last cause tells what the network said; the rest is about the client.
fn deepest(e: &(dyn Error + 'static)) -> String {
    tracing::debug!(error = %chain(e), "A call of EC2 failed.");
    let mut last = e;
    while let Some(next) = last.source() {
        if next.to_string().contains("credentials") {
            return next.to_string();
        }
        last = next;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use backup_core::advice;

    use super::*;

    fn fault(code: &str, message: &str, status: u16) -> AdapterError {
        let fault = Fault { code: code.into(), message: message.into(), status };
        fault.during("make the snapshots", "CreateSnapshots")
    }

    #[test]
    fn each_answer_says_what_is_wrong_and_what_to_do() {
        for (code, kind, says, help) in [
            ("UnauthorizedOperation", Kind::PermissionDenied, "`ec2:CreateSnapshots` is missing", "policy"),
            ("SnapshotLimitExceeded", Kind::NoSpace, "no more snapshots", "backup ebs prune"),
            ("ConcurrentSnapshotLimitExceeded", Kind::Unavailable, "same time", "wait"),
            ("InvalidSnapshot.InUse", Kind::Conflict, "an AMI uses", "deregister"),
            ("AuthFailure", Kind::PermissionDenied, "does not accept", "access_key_id"),
            ("InvalidInstanceID.NotFound", Kind::NotFound, "some words", "region"),
            ("RequestExpired", Kind::PermissionDenied, "not valid any more", "clock"),
        ] {
            let e = fault(code, "some words", 400);
            assert_eq!(e.kind(), kind, "{code}");
            assert!(chain(&e).contains(says) && !chain(&e).contains('\n'), "{code}: {}", chain(&e));
            assert!(advice(&e).unwrap().contains(help), "{code}: {:?}", advice(&e));
        }
        let e = fault(
            "UnauthorizedOperation",
            "User: x is not authorized to perform: ec2:CreateTags on resource: y",
            403,
        );
        assert!(advice(&e).unwrap().contains(r#""Action":"ec2:CreateTags""#), "{:?}", advice(&e));
        assert_eq!(fault("", "connection refused", 0).kind(), Kind::Unavailable);
        assert!(chain(&fault("InternalError", "oops", 500)).ends_with("EC2 answers InternalError, oops"));
    }

    #[test]
    fn only_a_refusal_proves_that_nothing_was_done() {
        let of = |code: &str, status| Fault { code: code.into(), message: String::new(), status };
        assert!(of("SnapshotLimitExceeded", 400).is_refusal());
        assert!(!of("", 0).is_refusal());
        assert!(!of("InternalError", 500).is_refusal());
        assert!(!of("Unavailable", 503).is_refusal());
    }
}
