//! Questions that restored data must answer.

use std::time::Duration;

use crate::error::AdapterError;

/// How long an answer may take.
pub const ANSWER_TIME: Duration = Duration::from_secs(30);

/// What came of one question: see [`ServiceAdapter::ask`](crate::ServiceAdapter::ask).
pub type Answer = Result<Option<String>, AdapterError>;

/// Whether an answer says that what was asked about is there.
///
/// Not if there is no value, nor if it is empty, zero (`0`, `0.00`), `false` or `null` in any case, an empty list (`[]`) or
/// an empty map (`{}`). So a count, an `EXISTS` and a value itself can all be asked for.
#[must_use]
pub fn passes(value: Option<&str>) -> bool {
    let Some(value) = value.map(str::trim) else { return false };
    let nothing = ["", "false", "null", "[]", "{}"].iter().any(|no| value.eq_ignore_ascii_case(no));
    !nothing && value.parse::<f64>().ok() != Some(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_any_form_does_not_pass() {
        for no in ["", "  ", "0", "-0", "0.00", "false", "FALSE", "null", "[]", "{}"] {
            assert!(!passes(Some(no)), "{no:?}");
        }
        assert!(!passes(None));
        for yes in ["1", "-1", "0.5", "true", "NaN", "a", "[0]", "0 rows", "no"] {
            assert!(passes(Some(yes)), "{yes:?}");
        }
    }
}
