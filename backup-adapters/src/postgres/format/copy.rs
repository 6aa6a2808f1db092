//! The text format of `COPY`: one line for each row, ended by a line `\.`.

/// Counts the rows of one `COPY` as its data passes.
#[derive(Debug)]
pub(super) struct CopyRows {
    pub(super) rows: u64,
    /// How much of the end marker the current line has shown; `None` once it cannot be that line any more.
    marker: Option<usize>,
}

/// Line breaks within values are escaped, and so is a backslash: no row begins like this.
const MARKER: &[u8] = b"\\.\n";

impl CopyRows {
    pub(super) fn new() -> Self {
        Self { rows: 0, marker: Some(0) }
    }

    /// Takes the next bytes, up to the end marker. Returns how many belong to the data (all, unless the marker is in
    /// them), and whether the marker was seen.
    pub(super) fn update(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Some(seen) = self.marker {
                if MARKER.get(seen) == Some(&byte) {
                    at += 1;
                    if seen + 1 == MARKER.len() {
                        return (at, true);
                    }
                    self.marker = Some(seen + 1);
                    continue;
                }
                self.marker = None;
            }
            let rest = bytes.get(at..).unwrap_or_default();
            match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    at += end + 1;
                    self.rows += 1;
                    self.marker = Some(0);
                }
                None => return (bytes.len(), false),
            }
        }
        (at, false)
    }
}
