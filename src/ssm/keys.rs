//! The AWS keys of all calls and websockets: looked for with the rights of whoever typed the command, and kept for a
//! while. So neither a credential process nor what sign-on writes into its cache is root's.

#![expect(clippy::disallowed_methods, reason = "a driver: keys end by the wall clock")]

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, Result, SharedCredentialsProvider, future};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::os::identity;

/// Keys of a provider of the SDK.
pub(super) struct Keys {
    source: SharedCredentialsProvider,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    credentials: Credentials,
    at: SystemTime,
}

impl Keys {
    pub(super) fn new(source: SharedCredentialsProvider) -> Self {
        Self { source, kept: Mutex::new(None) }
    }

    async fn current(&self) -> Result {
        let now = SystemTime::now();
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| kept.is_fresh(now)) {
            return Ok(kept.credentials.clone());
        }
        let source = self.source.clone();
        let asked = identity::run_as_caller(move || async move { source.provide_credentials().await });
        let answer = timeout(PATIENCE, asked).await;
        let answer = answer.map_err(|_| CredentialsError::provider_timed_out(PATIENCE))?;
        let credentials = answer.map_err(CredentialsError::unhandled)??;
        *kept = Some(Kept { credentials: credentials.clone(), at: now });
        Ok(credentials)
    }
}

impl Kept {
    /// Keys without an end are asked for again now and then too: they may have been replaced.
    fn is_fresh(&self, now: SystemTime) -> bool {
        let age = now.duration_since(self.at).unwrap_or(Duration::MAX);
        let lasts = self.credentials.expiry().is_none_or(|expiry| now + EXPIRY_MARGIN < expiry);
        age < KEPT_FOR && lasts
    }
}

impl ProvideCredentials for Keys {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.current())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// A credential process may ask its user something.
const PATIENCE: Duration = Duration::from_secs(60);
const KEPT_FOR: Duration = Duration::from_secs(300);
const EXPIRY_MARGIN: Duration = Duration::from_secs(120);
