//! The roles that statements of a dump name: a server that lacks one of them refuses the statement.

use std::collections::BTreeSet;

/// The beginnings of the statements that name roles, as `pg_dump` writes them.
pub(super) const NAMING: [&[u8]; 4] = [b"ALTER ", b"GRANT ", b"REVOKE ", b"CREATE POLICY "];

/// Names that are none.
const EVERYBODY: [&str; 4] = ["PUBLIC", "CURRENT_USER", "SESSION_USER", "CURRENT_ROLE"];

/// A part of a statement.
#[derive(Debug, PartialEq, Eq)]
enum Token {
    /// A word outside of quotes.
    Word(String),
    /// A name in double quotes.
    Quoted(String),
    Mark(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w.eq_ignore_ascii_case(word))
    }

    fn name(&self) -> Option<String> {
        match self {
            Self::Quoted(name) => Some(name.clone()),
            Self::Word(w) if EVERYBODY.iter().any(|e| w.eq_ignore_ascii_case(e)) => None,
            Self::Word(w) => Some(w.to_lowercase()),
            Self::Mark(_) => None,
        }
    }
}

/// Adds the roles that `statement` names: owners, those that rights are given to or taken from, those of policies.
pub(super) fn roles(statement: &[u8], out: &mut BTreeSet<String>) {
    let tokens = tokens(&String::from_utf8_lossy(statement));
    let at = |word: &str| tokens.iter().position(|t| t.is(word));
    let last = |word: &str| tokens.iter().rposition(|t| t.is(word));
    let Some(first) = tokens.first() else { return };
    if first.is("ALTER") {
        // ALTER DEFAULT PRIVILEGES FOR ROLE x IN SCHEMA y GRANT … TO z
        if let (Some(privileges), Some(role)) = (at("PRIVILEGES"), at("ROLE"))
            && role == privileges + 2
        {
            listed(&tokens, role, out);
        } else if let Some(owner) = at("OWNER").filter(|i| tokens.get(i + 1).is_some_and(|t| t.is("TO"))) {
            // The last two words of the statement: a column may have that name, too.
            if owner + 3 == tokens.len() {
                listed(&tokens, owner + 1, out);
            }
            return;
        } else {
            return;
        }
    }
    let from = if first.is("CREATE") {
        at("TO")
    } else if at("GRANT").is_some() {
        last("TO")
    } else {
        last("FROM")
    };
    if let Some(from) = from {
        listed(&tokens, from, out);
    }
}

/// The names after the token at `before`, between commas.
fn listed(tokens: &[Token], before: usize, out: &mut BTreeSet<String>) {
    let mut rest = tokens.iter().skip(before + 1);
    loop {
        out.extend(rest.next().and_then(Token::name));
        if rest.next() != Some(&Token::Mark(',')) {
            return;
        }
    }
}

fn tokens(statement: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut chars = statement.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '"' => {
                let mut name = String::new();
                while let Some(c) = chars.next() {
                    if c != '"' {
                        name.push(c);
                    } else if chars.next_if_eq(&'"').is_some() {
                        name.push('"');
                    } else {
                        break;
                    }
                }
                out.push(Token::Quoted(name));
            }
            // A text, which names nobody.
            '\'' => drop(chars.by_ref().find(|c| *c == '\'')),
            c if c.is_alphanumeric() || "_$".contains(c) => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || "_$".contains(*c)) {
                    word.push(c);
                }
                out.push(Token::Word(word));
            }
            mark => out.push(Token::Mark(mark)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(statement: &str) -> String {
        let mut out = BTreeSet::new();
        roles(statement.as_bytes(), &mut out);
        out.into_iter().collect::<Vec<_>>().join("|")
    }

    #[test]
    fn owners_rights_and_policies_name_roles() {
        for (statement, named) in [
            ("ALTER TABLE seed.documents OWNER TO seed_owner", "seed_owner"),
            ("ALTER FUNCTION public.f(a text, b integer) OWNER TO \"we \"\"ird\"", "we \"ird"),
            ("ALTER LARGE OBJECT 900002 OWNER TO seed_owner", "seed_owner"),
            ("ALTER TABLE ONLY a ADD CONSTRAINT b PRIMARY KEY (owner)", ""),
            ("ALTER TABLE ONLY a ALTER COLUMN owner SET DEFAULT 'x'", ""),
            ("GRANT SELECT ON TABLE seed.t TO seed_reader", "seed_reader"),
            ("GRANT SELECT ON TABLE seed.t TO a, \"B\" WITH GRANT OPTION", "B|a"),
            ("GRANT USAGE ON SCHEMA public TO PUBLIC", ""),
            ("REVOKE ALL ON SCHEMA public FROM reader", "reader"),
            ("REVOKE USAGE ON SCHEMA public FROM PUBLIC", ""),
            (
                "ALTER DEFAULT PRIVILEGES FOR ROLE yugabyte IN SCHEMA seed GRANT SELECT ON TABLES TO reader",
                "reader|yugabyte",
            ),
            ("ALTER DEFAULT PRIVILEGES FOR ROLE a REVOKE ALL ON FUNCTIONS FROM PUBLIC", "a"),
            ("CREATE POLICY own ON seed.d FOR SELECT TO reader, b USING (((id % 2) = 0))", "b|reader"),
            ("CREATE POLICY own ON seed.d USING (true)", ""),
            ("GRANT SELECT(\"TO\") ON TABLE t TO \"it's\"", "it's"),
        ] {
            assert_eq!(of(statement), named, "{statement}");
        }
    }
}
