//! Who may ask: the token endpoint and the metadata server, tokens, and what IAM lets the service account do.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::answer::{Refusal, refusal};
use crate::world::now_s;
use crate::{EMAIL, KEY_ID};

/// The service account's key. Made for these tests; it opens nothing.
const KEY: &str = include_str!("../keys/service-account.pem");
/// A key of nobody.
const STRANGER: &str = include_str!("../keys/stranger.pem");
/// How long a token is good, seconds.
const TOKEN_S: u64 = 3_599;
/// Longest life of a signed request for a token, and how far clocks may differ, seconds.
const ASSERTION_S: u64 = 3_600;
const SKEW_S: u64 = 300;
/// Google's token endpoint.
const GOOGLE: &str = "https://oauth2.googleapis.com/token";
const SCOPES: [&str; 2] = ["https://www.googleapis.com/auth/compute", "https://www.googleapis.com/auth/cloud-platform"];

const COUNTING: [&str; 2] =
    ["https://www.googleapis.com/auth/monitoring.read", "https://www.googleapis.com/auth/cloud-platform"];

/// The JSON text that Google would give for a key of the service account.
pub(crate) fn key_file(token_uri: &str, is_stranger: bool) -> String {
    let key = if is_stranger { STRANGER } else { KEY };
    json!({
        "type": "service_account",
        "project_id": crate::PROJECT,
        "private_key_id": KEY_ID,
        "private_key": key,
        "client_email": EMAIL,
        "client_id": "100000000000000000000",
        "token_uri": token_uri,
        "universe_domain": "googleapis.com",
    })
    .to_string()
}

/// What the service account may do, and the tokens that were given out.
pub(crate) struct Auth {
    permissions: BTreeSet<String>,
    public: Vec<u8>,
    /// By token, when it expires, Unix seconds.
    tokens: BTreeMap<String, u64>,
    given: u64,
    /// Tokens are for Cloud Monitoring, too.
    may_count: bool,
    /// The key was deleted.
    pub(crate) is_key_gone: bool,
}

impl Auth {
    /// `role`: a custom role as `gcloud iam roles create --file` takes it.
    pub(crate) fn new(role: &str) -> Self {
        let role: Value = serde_json::from_str(role).expect("a role is JSON");
        let permissions = role["includedPermissions"].as_array().expect("a role has permissions");
        let permissions =
            permissions.iter().map(|one| one.as_str().expect("a permission is text").to_owned()).collect();
        let packed: String = KEY.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(packed).expect("the key is base64");
        let pair = RsaKeyPair::from_pkcs8(&der).expect("the key is one");
        let public = pair.public_key().as_ref().to_vec();
        Self { permissions, public, tokens: BTreeMap::new(), given: 0, may_count: false, is_key_gone: false }
    }

    /// A new token, as both endpoints answer.
    pub(crate) fn give(&mut self) -> Value {
        self.given += 1;
        let token = format!("ya29.double-{}-{}", std::process::id(), self.given);
        self.tokens.insert(token.clone(), now_s() + TOKEN_S);
        json!({ "access_token": token, "expires_in": TOKEN_S, "token_type": "Bearer" })
    }

    /// Forgets all tokens.
    pub(crate) fn revoke(&mut self) {
        self.tokens.clear();
    }

    /// RFC 7523: a signed request for a token.
    pub(crate) fn exchange(&mut self, form: &BTreeMap<String, String>, token_uri: &str) -> Result<Value, Value> {
        let no = |code: &str, words: &str| Err(json!({ "error": code, "error_description": words }));
        if form.get("grant_type").map(String::as_str) != Some("urn:ietf:params:oauth:grant-type:jwt-bearer") {
            return no("unsupported_grant_type", "Invalid grant_type");
        }
        let claims = match self.claims(form.get("assertion").map(String::as_str).unwrap_or_default()) {
            Ok(claims) => claims,
            Err(words) => return no("invalid_grant", words),
        };
        // Google's own libraries name this endpoint whatever address they ask.
        if claims["aud"] != token_uri && claims["aud"] != GOOGLE {
            return no("invalid_grant", "Invalid JWT: Failed audience check");
        }
        if !is_scoped(&claims) {
            return no("invalid_scope", "Invalid OAuth scope or ID token audience provided.");
        }
        let scopes = claims["scope"].as_str().unwrap_or_default();
        self.may_count = scopes.split(' ').any(|scope| COUNTING.contains(&scope));
        Ok(self.give())
    }

    /// Whether the tokens given last are for Cloud Monitoring.
    pub(crate) fn check_counting(&self) -> Result<(), Refusal> {
        let words = "Request had insufficient authentication scopes.";
        if self.may_count { Ok(()) } else { Err(refusal(403, "ACCESS_TOKEN_SCOPE_INSUFFICIENT", words)) }
    }

    /// The claims of a JWT that the service account's key signed and that is valid now.
    fn claims(&self, jwt: &str) -> Result<Value, &'static str> {
        let (signed, signature) = jwt.rsplit_once('.').ok_or("Bad JWT")?;
        let (head, claims) = signed.split_once('.').ok_or("Bad JWT")?;
        let read = |part: &str| -> Option<Value> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok() };
        let (head, claims) = (read(head).ok_or("Bad JWT")?, read(claims).ok_or("Bad JWT")?);
        if head["alg"] != "RS256" || head["kid"] != KEY_ID || self.is_key_gone {
            return Err("Invalid JWT: no such key");
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "Bad JWT")?;
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public);
        public.verify(signed.as_bytes(), &signature).map_err(|_| "Invalid JWT Signature.")?;
        if claims["iss"] != EMAIL {
            return Err("Invalid grant: account not found");
        }
        let (from, to) = (claims["iat"].as_u64().ok_or("Bad JWT")?, claims["exp"].as_u64().ok_or("Bad JWT")?);
        let now = now_s();
        if to <= now || from > now + SKEW_S || to.saturating_sub(from) > ASSERTION_S {
            return Err("Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.");
        }
        Ok(claims)
    }

    /// Whether the header shows a token of ours, or a JWT that the key signed for Compute Engine.
    pub(crate) fn check(&self, header: Option<&str>) -> Result<(), Refusal> {
        let Some(token) = header.and_then(|header| header.strip_prefix("Bearer ")) else {
            return Err(refusal(401, "required", "Login Required."));
        };
        let is_own = self.tokens.get(token).is_some_and(|expires| *expires > now_s());
        let is_signed = || {
            let claims = self.claims(token).ok();
            claims.is_some_and(|claims| is_scoped(&claims) || claims["aud"] == "https://compute.googleapis.com/")
        };
        if is_own || is_signed() { Ok(()) } else { Err(refusal(401, "authError", "Invalid Credentials")) }
    }

    /// Whether the role has all of these.
    pub(crate) fn permit(&self, needed: &[&str], resource: &str) -> Result<(), Refusal> {
        match needed.iter().find(|one| !self.permissions.contains(**one)) {
            None => Ok(()),
            Some(missing) => {
                Err(refusal(403, "forbidden", &format!("Required '{missing}' permission for '{resource}'")))
            }
        }
    }
}

fn is_scoped(claims: &Value) -> bool {
    claims["scope"].as_str().is_some_and(|scopes| scopes.split(' ').any(|scope| SCOPES.contains(&scope)))
}
