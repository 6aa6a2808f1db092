//! The contract of adapters, for `ebs`.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_ec2::types::Tag;
use backup_core::testkit::adapter_suite::AdapterFixture;
use backup_core::{OpContext, ServiceAdapter};

use crate::disk::{Disk, freeze_line};
use crate::support::{Account, ID, Keys, SECRET, moto};

/// Perhaps with a file system that stands still meanwhile.
struct Fixture(Account, Option<Disk>);

#[async_trait]
impl AdapterFixture for Fixture {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        let freeze = self.1.as_ref().map(|disk| freeze_line(&[disk]));
        Arc::new(self.0.adapter(moto().address, &freeze.unwrap_or_default()))
    }
    async fn mutate(&self) {
        let tag = Tag::builder().key("changed").value("yes").build();
        self.0.client.create_tags().resources(&self.0.data).tags(tag).send().await.unwrap();
    }
    async fn live(&self) -> String {
        let volume = self.0.client.describe_volumes().volume_ids(&self.0.data).send().await.unwrap();
        format!("{:?} {:?}", volume.volumes()[0].state(), volume.volumes()[0].tags())
    }
    fn context(&self, mut cx: OpContext) -> OpContext {
        cx.secrets = Arc::new(Keys);
        cx
    }
    fn unreachable(&self) -> Option<Arc<dyn ServiceAdapter>> {
        Some(Arc::new(self.0.adapter("127.0.0.1:1".parse().unwrap(), "")))
    }
    fn canaries(&self) -> Vec<String> {
        vec![ID.to_owned(), SECRET.to_owned()]
    }
}

backup_core::adapter_conformance_tests!(
    #[ignore = "live: moto in a container"]
    ebs,
    || async { Fixture(Account::at("af-south-1").await, None) }
);

backup_core::adapter_conformance_tests!(
    #[ignore = "live: moto in a container, root and loop devices"]
    ebs_with_freeze,
    || async { Fixture(Account::at("af-south-1").await, Some(Disk::ext4())) }
);
