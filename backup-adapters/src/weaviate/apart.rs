//! What sets the server of a test restore apart from the live one, so that it starts though it reaches nothing outside.

use backup_core::Secret;

/// Modules that ask their own server whether it is ready, and end Weaviate if it is not, whatever is set.
const WAITING: [&str; 9] = [
    "img2vec-neural",
    "multi2vec-bind",
    "multi2vec-clip",
    "ner-transformers",
    "qna-transformers",
    "reranker-transformers",
    "sum-transformers",
    "text-spellcheck",
    "text2vec-contextionary",
];

/// Settings with which modules start though nothing outside answers: no bucket is made, no server of models awaited.
pub(super) fn settings() -> Vec<(String, Option<Secret>)> {
    let off = ["OFFLOAD_S3_BUCKET_AUTO_CREATE", "TRANSFORMERS_WAIT_FOR_STARTUP"];
    off.map(|name| (name.to_owned(), Some(Secret::new("false")))).to_vec()
}

/// The first of `modules` that does not start without its own server.
pub(super) fn waits(modules: &str) -> Option<&str> {
    modules.split(',').map(str::trim).find(|module| WAITING.contains(module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_that_wait_are_known() {
        assert_eq!(waits("text2vec-openai, reranker-transformers"), Some("reranker-transformers"));
        assert_eq!(waits("text2vec-transformers,backup-s3"), None);
        assert_eq!(waits(""), None);
    }
}
