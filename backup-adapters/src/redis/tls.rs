//! TLS to the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::{AdapterError, AdapterErrorKind};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

/// How the connection is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tls {
    /// Who may sign the server's certificate; the host's own list if `None`.
    pub(super) ca: Option<PathBuf>,
    /// Our certificate and its key, for a server that asks for one.
    pub(super) client: Option<(PathBuf, PathBuf)>,
    /// The name in the server's certificate; the host that is connected to if `None`.
    pub(super) server_name: Option<String>,
}

fn invalid(message: String) -> AdapterError {
    AdapterError::new(AdapterErrorKind::InvalidConfig, message)
}

fn unreadable(path: &Path) -> impl Fn(pem::Error) -> AdapterError {
    let path = path.display().to_string();
    move |e| match e {
        pem::Error::Io(e) => AdapterError::io(format!("cannot read `{path}`"), e),
        e => invalid(format!("`{path}` holds no usable PEM")).with_source(e),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AdapterError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable(path))?.collect();
    let read = read.map_err(unreadable(path))?;
    if read.is_empty() {
        return Err(invalid(format!("`{}` holds no certificate", path.display())));
    }
    Ok(read)
}

impl Tls {
    /// What makes connections. Reads the files: blocking.
    pub(super) fn connector(&self) -> Result<TlsConnector, AdapterError> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(path) => {
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|e| {
                        invalid(format!("`{}` holds no certificate of an authority", path.display()))
                            .with_source(e)
                    })?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                let (_usable, _odd) = roots.add_parsable_certificates(found.certs);
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| invalid("TLS cannot be set up".to_owned()).with_source(e))?
            .with_root_certificates(roots);
        let config = match &self.client {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let private = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
                config.with_client_auth_cert(certificates(cert)?, private).map_err(|e| {
                    let (cert, key) = (cert.display(), key.display());
                    invalid(format!("`{cert}` and `{key}` do not belong together")).with_source(e)
                })?
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// The name that the server's certificate must have.
    pub(super) fn name(&self, host: &str) -> Result<ServerName<'static>, AdapterError> {
        let name = self.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned())
            .map_err(|e| invalid(format!("`{name}` cannot be the name in a certificate")).with_source(e))
    }
}
