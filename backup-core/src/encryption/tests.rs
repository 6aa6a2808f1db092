#![expect(clippy::unwrap_used, clippy::string_slice, reason = "a test fails by panicking")]

use super::*;

fn key() -> (Identities, String) {
    let (text, public) = generate(chrono::DateTime::from_timestamp(0, 0).unwrap()).unwrap();
    assert!(
        text.expose().contains(&format!("# public key: {public}\n")) && !format!("{text:?}").contains("AGE")
    );
    let mut identities = Identities::default();
    identities.add(&text, "the file `k`").unwrap();
    assert_eq!(identities.public_keys(), std::slice::from_ref(&public));
    (identities, public)
}

fn with_passphrase(text: &str) -> Identities {
    let mut identities = Identities::default();
    identities.add_passphrase(&Secret::new(text)).unwrap();
    identities
}

#[test]
fn every_recipient_reads_it_and_nobody_else() {
    let ((one, a), (two, b), (other, _)) = (key(), key(), key());
    let sealed = Recipients::parse(&[a, b]).unwrap().seal_bytes(b"text").unwrap();
    for identities in [&one, &two] {
        assert_eq!(identities.open_bytes(&sealed).unwrap(), b"text");
    }
    assert_eq!(other.open_bytes(&sealed), Err(OpenError::NoKey));
    assert_eq!(Identities::default().open_bytes(&sealed), Err(OpenError::NoKey));
    // Several keys at hand, as after a rotation.
    let mut all = other.clone();
    all.extend(&two);
    assert_eq!(all.open_bytes(&sealed).unwrap(), b"text");
}

#[test]
fn a_flipped_bit_or_a_cut_anywhere_is_an_error() {
    let (identities, public) = key();
    let sealed = Recipients::parse(&[public]).unwrap().seal_bytes(&[7; 200]).unwrap();
    for at in 0..sealed.len() {
        let mut other = sealed.clone();
        other[at] ^= 1;
        assert!(identities.open_bytes(&other).is_err(), "byte {at}");
        assert!(identities.open_bytes(&sealed[..at]).is_err(), "cut at {at}");
    }
    let longer = [sealed.as_slice(), b"x"].concat();
    assert!(identities.open_bytes(&longer).is_err());
}

#[test]
fn a_wrong_passphrase_is_a_missing_key_and_the_next_one_is_tried() {
    let sealed = Recipients::passphrase(&Secret::new("open sesame")).unwrap().seal_bytes(b"text").unwrap();
    let mut identities = with_passphrase("open barley");
    assert_eq!(identities.open_bytes(&sealed), Err(OpenError::NoKey));
    identities.extend(&key().0);
    identities.extend(&with_passphrase("open sesame"));
    assert_eq!(identities.open_bytes(&sealed).unwrap(), b"text");
}

#[test]
fn keys_of_ssh_are_taken_and_those_with_a_passphrase_refused() {
    let dir = tempfile::tempdir().unwrap();
    let make = |kind: &str, passphrase: &str| {
        let path = dir.path().join(format!("{kind}{}", passphrase.len()));
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", passphrase, "-C", "somebody@somewhere", "-f"])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
        (Secret::new(std::fs::read_to_string(&path).unwrap()), public)
    };
    for kind in ["ed25519", "rsa"] {
        let (secret, public) = make(kind, "");
        let recipients = Recipients::parse(&[public]).unwrap();
        assert!(!recipients.shown()[0].contains("somebody"));
        let sealed = recipients.seal_bytes(b"text").unwrap();
        let mut identities = Identities::default();
        identities.add(&secret, "the file `k`").unwrap();
        assert_eq!(identities.open_bytes(&sealed).unwrap(), b"text");
    }
    let (secret, _) = make("ed25519", "hunter2");
    let e = Identities::default().add(&secret, "the file `k`").unwrap_err().to_string();
    assert!(e.contains("the file `k`") && e.contains("passphrase"), "{e}");
}

#[test]
fn what_is_no_key_is_refused_without_being_repeated() {
    let (text, public) = generate(chrono::DateTime::from_timestamp(0, 0).unwrap()).unwrap();
    let secret = text.expose().lines().last().unwrap();
    let e = Recipients::parse(&[secret]).unwrap_err().to_string();
    assert!(e.contains("secret key stands where") && !e.contains(&secret[20..]), "{e}");
    for (bad, says) in [
        ("age1qqqq", "`age1qqqq…`"),
        ("ssh-dss AAAA", "of SSH's"),
        ("hello", "does not begin"),
        (&public[..public.len() - 1], "no public key"),
    ] {
        let e = Recipients::parse(&[bad]).unwrap_err().to_string();
        assert!(e.contains(says), "{bad}: {e}");
    }
    assert!(Recipients::parse::<String>(&[]).is_err());
    for (bad, says) in [
        (public.as_str(), "public key in line 1"),
        ("# nothing\n\nhunter2\n", "line 3"),
        ("# nothing\n", "no identity"),
        ("age-encryption.org/v1\n-> scrypt", "itself encrypted"),
    ] {
        let e = Identities::default().add(&Secret::new(bad), "the variable `K`").unwrap_err().to_string();
        assert!(e.contains("the variable `K`") && e.contains(says) && !e.contains("hunter2"), "{e}");
    }
}
