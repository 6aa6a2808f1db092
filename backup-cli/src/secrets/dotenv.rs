//! Single values of dotenv files, as Docker Compose reads them: the crates for this expand variables from the process's
//! environment and quote lines, which may hold secrets, in their errors.

/// The value of `key`; the last one wins. `${…}` is not expanded: a password may hold it.
pub(super) fn value(text: &str, key: &str) -> Option<String> {
    let mut found = None;
    for line in text.lines().map(str::trim) {
        let line = line.strip_prefix("export ").unwrap_or(line);
        if let Some((name, value)) = line.split_once('=')
            && name.trim_end() == key
        {
            found = Some(unquote(value.trim()));
        }
    }
    found
}

fn unquote(value: &str) -> String {
    if let Some(rest) = value.strip_prefix('\'') {
        return rest.split('\'').next().unwrap_or_default().to_owned();
    }
    let Some(rest) = value.strip_prefix('"') else {
        // A `#` begins a comment only after a space: passwords hold it, too.
        let end = [" #", "\t#"].into_iter().filter_map(|mark| value.find(mark)).min();
        return end.and_then(|end| value.get(..end)).unwrap_or(value).trim_end().to_owned();
    };
    let mut out = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some(c @ ('"' | '\\' | '$')) => out.push(c),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_comments_and_exports() {
        let text =
            "# P=no\nexport P = a#b # comment\nQ='it # is' # x\nR=\"a\\\"b\\n\" \nS=\nP2=x\nT=$HOME/${X}\n";
        for (key, expected) in
            [("P", "a#b"), ("Q", "it # is"), ("R", "a\"b\n"), ("S", ""), ("P2", "x"), ("T", "$HOME/${X}")]
        {
            assert_eq!(value(text, key).as_deref(), Some(expected), "{key}");
        }
        assert_eq!(value(text, "X"), None);
        assert_eq!(value("A=1\nA=2", "A").as_deref(), Some("2"));
    }
}
