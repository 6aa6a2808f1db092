//! Object storage as a store, over live servers.

#![cfg(feature = "object")]
#![expect(clippy::unwrap_used, reason = "assertions of tests")]

mod azure;
mod faults;
mod full;
mod google;
mod locks;
mod promises;
mod proxy;
mod refused;
mod rights;
mod roles;
mod server;
mod sums;
mod tokens;

use backup_core::store_conformance_tests;

store_conformance_tests!(
    #[ignore = "live: MinIO in a container"]
    minio,
    || async { server::minio().bucket().await.store() }
);

store_conformance_tests!(
    #[ignore = "live: moto in a container"]
    moto,
    || async { server::moto().bucket().await.store() }
);

store_conformance_tests!(
    #[ignore = "live: Azurite in a container"]
    azurite,
    || async { azure::azurite().container().store() }
);
