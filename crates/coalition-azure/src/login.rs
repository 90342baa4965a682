//! Tokens: Microsoft's credentials, made from what the source says each time one is needed.

use std::sync::Arc;

use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::{Error, ErrorKind};
use azure_core::http::{ClientOptions, RetryOptions, Transport as PipelineTransport};
use azure_identity::{
    ClientSecretCredential, ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions,
    UserAssignedId,
};
use coalition_cloud::{ErrorKind as Kind, one_line};

use crate::credentials::{CredentialSource, Credentials};
use crate::setup::Places;
use crate::transport::Transport;

/// Longest word of a token endpoint kept, in characters.
const MAX_MESSAGE: usize = 300;

/// Gives tokens to the pipeline.
pub(crate) struct Login {
    source: CredentialSource,
    options: ClientOptions,
    made: tokio::sync::Mutex<Option<(Credentials, Arc<dyn TokenCredential>)>>,
}

/// Why there is no token: a kind, and words without any secret.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub(crate) struct NoToken {
    pub(crate) kind: Kind,
    pub(crate) problem: String,
}

impl Login {
    pub(crate) fn new(source: CredentialSource, places: &Places, transport: &Transport) -> Self {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host = places.authority.as_str().trim_end_matches('/').to_owned();
        let options = ClientOptions {
            retry: RetryOptions::none(),
            transport: Some(PipelineTransport::with_policy(Arc::new(transport.clone()))),
            cloud: Some(Arc::new(CloudConfiguration::from(cloud))),
            ..ClientOptions::default()
        };
        Self { source, options, made: tokio::sync::Mutex::default() }
    }

    /// Whom tokens are asked for, for the operator.
    pub(crate) fn who(&self) -> Result<String, NoToken> {
        let credentials = (self.source)().map_err(|error| NoToken { kind: Kind::Auth, problem: error.to_string() })?;
        Ok(credentials.to_string())
    }

    /// Asks for a new token next time, whatever the old one's end: it was not taken.
    pub(crate) async fn forget(&self) {
        *self.made.lock().await = None;
    }

    fn make(&self, credentials: &Credentials) -> azure_core::Result<Arc<dyn TokenCredential>> {
        let client_options = self.options.clone();
        Ok(match credentials {
            Credentials::ClientSecret { tenant, client, secret } => {
                let options = ClientSecretCredentialOptions { client_options };
                let secret = Secret::new(secret.as_str().to_owned());
                ClientSecretCredential::new(tenant, client.clone(), secret, Some(options))?
            }
            Credentials::ManagedIdentity { client } => {
                let user_assigned_id = client.clone().map(UserAssignedId::ClientId);
                let options = ManagedIdentityCredentialOptions { user_assigned_id, client_options };
                ManagedIdentityCredential::new(Some(options))?
            }
        })
    }

    async fn token(&self, scopes: &[&str], options: Option<TokenRequestOptions<'_>>) -> Result<AccessToken, NoToken> {
        let unavailable = |problem: String| NoToken { kind: Kind::Auth, problem };
        let credentials = (self.source)().map_err(|error| unavailable(error.to_string()))?;
        let mut made = self.made.lock().await;
        let credential = match made.as_ref().filter(|(of, _)| *of == credentials) {
            Some((_, credential)) => Arc::clone(credential),
            None => {
                let fresh = self.make(&credentials).map_err(|error| sorted(&error, &credentials))?;
                *made = Some((credentials.clone(), Arc::clone(&fresh)));
                fresh
            }
        };
        drop(made);
        let token = credential.get_token(scopes, options).await.map_err(|error| sorted(&error, &credentials))?;
        if token.token.secret().is_empty() {
            *self.made.lock().await = None;
            let problem = format!("the token endpoint's answer has no token ({credentials})");
            return Err(NoToken { kind: Kind::Transient, problem });
        }
        Ok(token)
    }
}

/// What kind of failure; only words are kept, as Microsoft's error holds the answer's bytes.
fn sorted(error: &Error, credentials: &Credentials) -> NoToken {
    let (mut inner, mut depth) = (error, 0);
    while let (ErrorKind::Credential, Some(below), true) = (inner.kind(), inner.downcast_ref::<Error>(), depth < 4) {
        (inner, depth) = (below, depth + 1);
    }
    let kind = match inner.kind() {
        ErrorKind::HttpResponse { status, .. } => match u16::from(*status) {
            429 => Kind::Throttled,
            408 | 500..=599 => Kind::Transient,
            _ => Kind::Auth,
        },
        ErrorKind::Connection | ErrorKind::Io | ErrorKind::DataConversion => Kind::Transient,
        _ => Kind::Auth,
    };
    let words = match inner.kind() {
        ErrorKind::Connection => "the token endpoint cannot be reached".to_owned(),
        ErrorKind::Io => "the token endpoint did not answer".to_owned(),
        ErrorKind::DataConversion => "the token endpoint's answer cannot be read".to_owned(),
        _ => one_line(&without_secret(&inner.to_string(), credentials), MAX_MESSAGE),
    };
    NoToken { kind, problem: format!("{words} ({credentials})") }
}

/// The words of a stranger, who may repeat what was said to it.
fn without_secret(words: &str, credentials: &Credentials) -> String {
    match credentials {
        Credentials::ClientSecret { secret, .. } => words.replace(secret.as_str(), "(the secret)"),
        Credentials::ManagedIdentity { .. } => words.to_owned(),
    }
}

#[async_trait::async_trait]
impl TokenCredential for Login {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        self.token(scopes, options).await.map_err(|error| Error::new(ErrorKind::Credential, error))
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(redacted)")
    }
}
