//! Tokens: asked for with the credentials, kept until shortly before they expire.
//!
//! For a service account's key a JWT is signed (RS256) and exchanged at the key's token endpoint, RFC 7523; the metadata
//! server gives tokens to whoever asks from its machine.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use ring::rand::SystemRandom;
use ring::signature::RSA_PKCS1_SHA256;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::action::Action;
use crate::credentials::{Credentials, CredentialsError, MetadataServer, ServiceAccountKey};
use crate::error::GcpError;
use crate::http::{Answer, Http};

/// All that tokens are asked for: Compute Engine and reading what was counted, within what the service account may do.
const SCOPE: &str = "https://www.googleapis.com/auth/compute https://www.googleapis.com/auth/monitoring.read";
/// How long a signed request for a token is good for; Google allows an hour.
const ASSERTION_S: u64 = 3_600;
/// A token that expires sooner is not used any more.
const MARGIN: Duration = Duration::from_secs(60);
/// Longest that a token is believed to be good.
const MAX_AGE_S: u64 = 86_400;
/// Longest token accepted, in bytes. Google's have up to 2,048.
const MAX_TOKEN: usize = 8_192;

/// A token. Wiped when dropped.
#[derive(Clone)]
pub(crate) struct Token(Zeroizing<String>);

impl Token {
    /// The header that shows it, kept out of logs.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let text = Zeroizing::new(format!("Bearer {}", self.0.as_str()));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

struct Kept {
    token: Token,
    fingerprint: Vec<u8>,
    until: Instant,
}

/// The newest token.
#[derive(Default)]
pub(crate) struct Tokens(tokio::sync::Mutex<Option<Kept>>);

impl Tokens {
    /// A token for these credentials. One is asked for at a time; who waits gets the same.
    pub(crate) async fn token(&self, http: &Http, credentials: &Credentials) -> Result<Token, GcpError> {
        let mut kept = self.0.lock().await;
        let fingerprint = credentials.fingerprint();
        if let Some(kept) = kept.as_ref().filter(|kept| kept.fingerprint == fingerprint && kept.until > Instant::now())
        {
            return Ok(kept.token.clone());
        }
        let answer = match credentials {
            Credentials::Key(key) => exchange(http, key).await?,
            Credentials::MetadataServer(server) => ask(http, server, "token").await?,
        };
        let (token, lasts) = read_token(&answer.body).map_err(garbled)?;
        let until = Instant::now() + lasts.saturating_sub(MARGIN);
        *kept = Some(Kept { token: token.clone(), fingerprint, until });
        Ok(token)
    }

    /// Forgets the token: it was refused.
    pub(crate) async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

fn garbled(problem: String) -> GcpError {
    GcpError::Garbled { action: Action::GetToken, problem }
}

/// Who the credentials belong to.
pub(crate) async fn email(http: &Http, credentials: &Credentials) -> Result<String, GcpError> {
    match credentials {
        Credentials::Key(key) => Ok(key.email.clone()),
        Credentials::MetadataServer(server) => {
            let answer = ask(http, server, "email").await?;
            Ok(coalition_cloud::one_line(String::from_utf8_lossy(&answer.body).trim(), 200))
        }
    }
}

async fn exchange(http: &Http, key: &ServiceAccountKey) -> Result<Answer, GcpError> {
    let action = Action::GetToken;
    let problem = |what: &str| CredentialsError::Unavailable(format!("no token can be asked for: {what}"));
    let refuse = |what: &str| GcpError::Credentials { action, source: problem(what) };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| refuse("the clock is before 1970"))?.as_secs();
    let assertion = assertion(key, now_s).map_err(|()| refuse("the key does not sign"))?;
    let url = key.token_uri.parse().map_err(|_| refuse("token_uri is no URL"))?;
    let mut request = reqwest::Request::new(reqwest::Method::POST, url);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    // Base64 for URLs needs no escaping.
    let body = Zeroizing::new(format!(
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={}",
        assertion.as_str()
    ));
    *request.body_mut() = Some(body.to_string().into());
    http.once(action, request).await
}

/// The signed request for a token.
fn assertion(key: &ServiceAccountKey, now_s: u64) -> Result<Zeroizing<String>, ()> {
    let head = json!({ "alg": "RS256", "typ": "JWT", "kid": key.key_id });
    let claims = json!({
        "iss": key.email,
        "scope": SCOPE,
        "aud": key.token_uri,
        "iat": now_s,
        "exp": now_s.saturating_add(ASSERTION_S),
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&head), part(&claims));
    let mut signature = vec![0; key.signer.public().modulus_len()];
    key.signer.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).map_err(drop)?;
    Ok(Zeroizing::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
}

async fn ask(http: &Http, server: &MetadataServer, what: &str) -> Result<Answer, GcpError> {
    let action = Action::GetToken;
    let url = format!("{}/computeMetadata/v1/instance/service-accounts/default/{what}", server.endpoint);
    let problem = "the metadata server's address is none";
    let url = url.parse().map_err(|_| GcpError::Unaskable { action, problem: problem.into() })?;
    let mut request = reqwest::Request::new(reqwest::Method::GET, url);
    request.headers_mut().insert("metadata-flavor", HeaderValue::from_static("Google"));
    let answer = http.once(action, request).await?;
    // Proves that it is one: others that listen there do not know the word.
    if !answer.is_flavoured {
        return Err(garbled("it is not from a metadata server of Google".into()));
    }
    Ok(answer)
}

/// The token of an answer, and how long it is good.
pub(crate) fn read_token(body: &[u8]) -> Result<(Token, Duration), String> {
    let mut said: Value = serde_json::from_slice(body).map_err(|_| "it is no JSON".to_owned())?;
    let token = said.get_mut("access_token").map(Value::take);
    let Some(Value::String(token)) = token else { return Err("it has no access_token".into()) };
    let token = Zeroizing::new(token);
    if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("its access_token is none".into());
    }
    let sort = said.get("token_type").and_then(Value::as_str).unwrap_or_default();
    if !sort.eq_ignore_ascii_case("bearer") {
        return Err("its token is not of type Bearer".into());
    }
    let lasts_s = said.get("expires_in").and_then(Value::as_u64).ok_or("it does not say when its token expires")?;
    Ok((Token(token), Duration::from_secs(lasts_s.min(MAX_AGE_S))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_token_endpoints() {
        let read = |text: &str| read_token(text.as_bytes()).map(|(_, lasts)| lasts.as_secs());
        assert_eq!(read(r#"{"access_token":"ya29.x","expires_in":3599,"token_type":"Bearer"}"#), Ok(3_599));
        assert_eq!(read(r#"{"access_token":"x","expires_in":99999999,"token_type":"bearer"}"#), Ok(MAX_AGE_S));
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"access_token":"","expires_in":1,"token_type":"Bearer"}"#,
            r#"{"access_token":"a\nb","expires_in":1,"token_type":"Bearer"}"#,
            r#"{"access_token":["x"],"expires_in":1,"token_type":"Bearer"}"#,
            r#"{"access_token":"s3cr","expires_in":-1,"token_type":"Bearer"}"#,
            r#"{"access_token":"s3cr","expires_in":1,"token_type":"mac"}"#,
        ] {
            let problem = read(wrong).unwrap_err();
            assert!(!problem.contains("s3cr"), "{problem}");
        }
        let (token, _) = read_token(br#"{"access_token":"s3cr","expires_in":9,"token_type":"Bearer"}"#).unwrap();
        assert!(!format!("{:?}", token.header().unwrap()).contains("s3cr"));
    }
}
