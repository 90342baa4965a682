//! Who gives out tokens: Entra's endpoint for applications, and the metadata service's for machines.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coalition_cloud_double::form;
use serde_json::json;

use crate::answer::{Answer, Refusal};
use crate::world::lock;
use crate::{CLIENT, SECRET, TENANT};

const AUDIENCE: &str = "https://management.azure.com";

/// Tokens and how they are given.
pub(crate) struct Login {
    tokens: Mutex<BTreeMap<String, Instant>>,
    given: AtomicU64,
    /// How long tokens are good for, seconds.
    pub(crate) life_s: AtomicU64,
    /// The application's secret has ended.
    pub(crate) expired: AtomicBool,
}

impl Default for Login {
    fn default() -> Self {
        let (life_s, expired) = (AtomicU64::new(3_600), AtomicBool::new(false));
        Self { tokens: Mutex::default(), given: AtomicU64::new(0), life_s, expired }
    }
}

impl Login {
    fn give(&self) -> (String, u64) {
        let life_s = self.life_s.load(Ordering::SeqCst);
        let token = format!("token-{}", self.given.fetch_add(1, Ordering::SeqCst));
        lock(&self.tokens).insert(token.clone(), Instant::now() + Duration::from_secs(life_s));
        (token, life_s)
    }

    /// Tokens given so far.
    pub(crate) fn given(&self) -> u64 {
        self.given.load(Ordering::SeqCst)
    }

    /// No token given so far counts any more.
    pub(crate) fn revoke(&self) {
        lock(&self.tokens).clear();
    }

    /// Entra's `/{tenant}/oauth2/v2.0/token`.
    pub(crate) fn token(&self, tenant: &str, body: &[u8]) -> Answer {
        let form = form(&String::from_utf8_lossy(body));
        let is = |name: &str, wanted: &str| form.get(name).is_some_and(|given| given == wanted);
        let refused = |status, error: &str, code: u32, words: &str| {
            let description = format!("AADSTS{code}: {words} Trace ID: 0 Correlation ID: 0 Timestamp: 0");
            Answer::json(status, &json!({ "error": error, "error_codes": [code], "error_description": description }))
        };
        if tenant != TENANT {
            return refused(400, "invalid_request", 90_002, "Tenant not found.");
        }
        if !is("grant_type", "client_credentials") || !is("scope", &format!("{AUDIENCE}/.default")) {
            return refused(
                400,
                "invalid_scope",
                70_011,
                "The provided value for the input parameter 'scope' is not valid.",
            );
        }
        if !is("client_id", CLIENT) {
            return refused(400, "unauthorized_client", 700_016, "Application was not found in the directory.");
        }
        if !is("client_secret", SECRET) {
            return refused(401, "invalid_client", 7_000_215, "Invalid client secret provided.");
        }
        if self.expired.load(Ordering::SeqCst) {
            return refused(401, "invalid_client", 7_000_222, "The provided client secret keys are expired.");
        }
        let (token, life_s) = self.give();
        let body =
            json!({ "token_type": "Bearer", "expires_in": life_s, "ext_expires_in": life_s, "access_token": token });
        Answer::json(200, &body)
    }

    /// The metadata service's `/metadata/identity/oauth2/token`.
    pub(crate) fn metadata(&self, query: &str, said_metadata: bool) -> Answer {
        let query = form(query);
        let is_known = query.get("client_id").is_none_or(|client| client == CLIENT);
        let is_right = query.get("resource").is_some_and(|resource| resource == AUDIENCE);
        if !said_metadata || !is_right || !is_known || !query.contains_key("api-version") {
            let body = json!({ "error": "invalid_request", "error_description": "Identity not found" });
            return Answer::json(400, &body);
        }
        let (token, life_s) = self.give();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let body = json!({
            "access_token": token, "expires_on": (now + life_s).to_string(), "expires_in": life_s.to_string(),
            "not_before": now.to_string(), "resource": AUDIENCE, "token_type": "Bearer",
        });
        Answer::json(200, &body)
    }

    /// Whether a request may be looked at.
    pub(crate) fn check(&self, authorization: Option<&str>) -> Result<(), Refusal> {
        let Some(token) = authorization.and_then(|value| value.strip_prefix("Bearer ")) else {
            let words = "Authentication failed. The 'Authorization' header is missing.";
            return Err(Refusal::new(401, "AuthenticationFailed", words));
        };
        match lock(&self.tokens).get(token) {
            Some(until) if Instant::now() < *until => Ok(()),
            Some(_) => Err(Refusal::new(401, "ExpiredAuthenticationToken", "The access token expired.")),
            None => Err(Refusal::new(401, "InvalidAuthenticationToken", "The access token is invalid.")),
        }
    }
}
