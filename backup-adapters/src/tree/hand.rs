//! How to restore an archive with `tar`.

use backup_core::{HandContext, HandStep, shell_quote};

use super::restore::archive;

/// The steps: extract, then one for each root.
pub(crate) fn steps(backup: &HandContext<'_>) -> Vec<HandStep> {
    let Ok((artifact, roots)) = archive(backup.metadata) else { return Vec::new() };
    let extract = format!(
        "mkdir -p restored && {} | tar -x --numeric-owner -p --xattrs --xattrs-include='*' -C restored",
        backup.decode(artifact)
    );
    let mut steps = vec![HandStep::new(
        "Extract the archive into a new folder. As root, owners are restored too; names are those of the original \
         paths without the leading slash.",
        extract,
    )];
    for root in roots {
        let path = shell_quote(&root.path.display().to_string());
        let old = shell_quote(&format!("{}.old", root.path.display()));
        let above = shell_quote(&root.path.parent().map(|p| p.display().to_string()).unwrap_or_default());
        let member = shell_quote(&format!("restored/{}", root.member));
        steps.push(HandStep::new(
            format!(
                "Put `{}` into its place; what is there now stays beside it. Stop what writes to it first.",
                root.path.display()
            ),
            format!(
                "if [ -e {path} ]; then mv -T {path} {old}; fi; mkdir -p {above} && mv -T {member} {path}"
            ),
        ));
    }
    steps
}
