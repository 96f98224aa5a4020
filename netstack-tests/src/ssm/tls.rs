//! A certificate authority for one run, and the server certificate it signs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

/// What the server needs for TLS; the CA's file is deleted with it.
pub(crate) struct Authority {
    pub(crate) acceptor: TlsAcceptor,
    directory: TempDir,
}

impl Authority {
    /// Makes a CA and a certificate for the loopback names and `host`.
    pub(crate) fn new(host: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "SSM simulator CA");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        let bare = host.trim_matches(['[', ']']);
        if !names.iter().any(|name| name == bare)
            && bare.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified())
        {
            names.push(bare.to_owned());
        }
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;

        let directory = tempfile::Builder::new().prefix("ssm-simulator-").tempdir()?;
        let path = directory.path().join(CA_FILE);
        std::fs::write(&path, issuer.pem()).with_context(|| format!("write {}", path.display()))?;

        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(server)), directory })
    }

    pub(crate) fn ca_path(&self) -> PathBuf {
        self.directory.path().join(Path::new(CA_FILE))
    }
}

const CA_FILE: &str = "ca.pem";
