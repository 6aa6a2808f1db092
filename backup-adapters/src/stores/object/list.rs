//! Listings of which an answer ended early: the client tries everything again by itself but this.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, ObjectStore as _};
use tokio::time::Instant;

use super::{ObjectStore, fault};

const AGAIN: Duration = Duration::from_millis(500);

impl ObjectStore {
    /// Everything below `path`. It begins anew as long as nothing was handed out: not all servers sort, so that nobody could
    /// tell where to go on.
    pub(super) fn list_again(&self, path: Path) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let until = Instant::now() + self.retry_for;
        let (store, listing) = (self.clone(), self.inner.list(Some(&path)));
        stream::unfold((store, path, listing, true), move |(store, path, mut listing, first)| async move {
            loop {
                match listing.next().await? {
                    Err(e) if first && Instant::now() < until && fault::may_pass(&e) => {
                        tokio::time::sleep(AGAIN).await;
                        listing = store.inner.list(Some(&path));
                    }
                    item => return Some((item, (store, path, listing, false))),
                }
            }
        })
        .boxed()
    }

    pub(super) async fn dirs_again(&self, path: &Path) -> object_store::Result<ListResult> {
        let until = Instant::now() + self.retry_for;
        loop {
            match self.inner.list_with_delimiter(Some(path)).await {
                Err(e) if Instant::now() < until && fault::may_pass(&e) => tokio::time::sleep(AGAIN).await,
                listed => return listed,
            }
        }
    }
}
