//! The server: who may ask what, which call this is, and how it fails when a test wants it to.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::{HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use coalition_cloud_double::{Boot, Counter, Watcher, form};
use serde_json::{Value, json};

use crate::answer::{Answer, Refusal};
use crate::login::Login;
use crate::tls::{TlsListener, authority};
use crate::world::{MACHINES, World, lock};
use crate::{GROUP, REGION, SUBSCRIPTION, catalogue, console, machines, telemetry, things};

/// Longest body taken.
const MAX_BODY: usize = 1 << 20;
/// Versions of the API that are served, by the newest part of their providers.
const VERSIONS: [&str; 15] = [
    "2021-04-01",
    "2021-07-01",
    "2022-09-01",
    "2022-12-01",
    "2024-02-01",
    "2024-03-03",
    "2024-05-01",
    "2024-11-01",
    "2025-01-02",
    "2025-04-01",
    "2025-11-01",
    "2026-03-01",
    "2026-03-02",
    "2026-03-03",
    "2026-04-01",
];

/// How one call fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused with this code and status; nothing is done.
    Refuse(&'static str, u16),
    /// Refused with all of a body.
    Answer(u16, String),
    /// Asked too often: come again after so many seconds.
    Throttle(u64),
    /// It is done; the connection ends in the middle of the answer.
    LoseAnswer,
    /// It is done; the answer is no JSON.
    Garble,
    /// It is taken, and fails with this code on the way.
    FailLater(&'static str),
    /// What is there is left out of the answer: Azure shows new things late.
    ShowNothing,
    /// Of an ending: the machine ends, its disk, interface and address stay.
    LeaveBehind,
}

/// One call as it came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The permission it needs, e.g. `Microsoft.Compute/virtualMachines/write`; `token` and `metadata` for tokens.
    pub name: String,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The body, if it was JSON.
    pub body: Value,
}

pub(crate) struct Inner {
    pub(crate) endpoint: String,
    pub(crate) boot: Option<Arc<dyn Boot>>,
    pub(crate) world: Mutex<World>,
    login: Login,
    permitted: Option<BTreeSet<String>>,
    faults: Mutex<Vec<(String, VecDeque<Fault>)>>,
    calls: Mutex<Vec<Call>>,
    watcher: Watcher,
    served: Counter,
    blind: AtomicBool,
    no_addresses: AtomicBool,
    only_locations: AtomicBool,
    silent_failures: AtomicBool,
    disabled: AtomicBool,
    quota: Mutex<(u32, u32)>,
    looks: AtomicU32,
    retry_after: AtomicU64,
    page: AtomicU32,
}

impl Inner {
    pub(crate) fn no_addresses(&self) -> bool {
        self.no_addresses.load(Ordering::SeqCst)
    }

    pub(crate) fn only_locations(&self) -> bool {
        self.only_locations.load(Ordering::SeqCst)
    }

    pub(crate) fn silent_failures(&self) -> bool {
        self.silent_failures.load(Ordering::SeqCst)
    }

    pub(crate) fn subscription_state(&self) -> &'static str {
        if self.disabled.load(Ordering::SeqCst) { "Disabled" } else { "Enabled" }
    }

    pub(crate) fn limits(&self) -> (u32, u32) {
        *lock(&self.quota)
    }

    pub(crate) fn looks(&self) -> u32 {
        self.looks.load(Ordering::SeqCst)
    }

    pub(crate) fn retry_after(&self) -> u64 {
        self.retry_after.load(Ordering::SeqCst)
    }
}

/// The double; ends with the runtime it was started on.
pub struct Double {
    inner: Arc<Inner>,
    /// Where all of it listens: the Resource Manager, Entra, the metadata service. `https://127.0.0.1:PORT`.
    pub endpoint: String,
    /// The certificate authority it shows a certificate of, PEM.
    pub root: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Double {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Double {
    /// Starts it. `roles` are definitions of Azure roles, as `docs/permissions` has them: what none of them permits is refused;
    /// none at all permit everything. `boot` is told of every machine that is made and ended.
    pub async fn start(roles: &[&str], boot: Option<Arc<dyn Boot>>) -> Self {
        let (root, config) = authority();
        let listener = TlsListener::bind(config).await;
        let address = axum::serve::Listener::local_addr(&listener).expect("it has an address");
        let endpoint = format!("https://{address}");
        let inner = Arc::new(Inner {
            endpoint: endpoint.clone(),
            boot,
            world: Mutex::default(),
            login: Login::default(),
            permitted: (!roles.is_empty()).then(|| roles.iter().flat_map(|role| actions(role)).collect()),
            faults: Mutex::default(),
            calls: Mutex::default(),
            watcher: Watcher::default(),
            served: Counter::default(),
            blind: AtomicBool::new(false),
            no_addresses: AtomicBool::new(false),
            only_locations: AtomicBool::new(false),
            silent_failures: AtomicBool::new(false),
            disabled: AtomicBool::new(false),
            quota: Mutex::new((20, 10)),
            looks: AtomicU32::new(1),
            retry_after: AtomicU64::new(0),
            page: AtomicU32::new(2),
        });
        let router = Router::new().fallback(handle).with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { inner, endpoint, root, serving }
    }

    /// The next calls of this name fail like this, one after the other.
    pub fn fail(&self, name: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.inner.faults).push((name.to_owned(), faults.into_iter().collect()));
    }

    /// Counts what is answered.
    #[must_use]
    pub fn served(&self) -> &Counter {
        &self.inner.served
    }

    /// All calls fail from now on, tokens aside, or none any more: Azure has an outage.
    pub fn blind(&self, blind: bool) {
        self.inner.blind.store(blind, Ordering::SeqCst);
    }

    /// Machines get no address, from now on or no longer.
    pub fn no_addresses(&self, none: bool) {
        self.inner.no_addresses.store(none, Ordering::SeqCst);
    }

    /// The region's quota, and that of each family, in vCPUs.
    pub fn quota(&self, all: u32, family: u32) {
        *lock(&self.inner.quota) = (all, family);
    }

    /// How often what goes on must be looked at until it is over, and how many seconds Azure asks to wait in between.
    pub fn slow(&self, looks: u32, retry_after_s: u64) {
        self.inner.looks.store(looks, Ordering::SeqCst);
        self.inner.retry_after.store(retry_after_s, Ordering::SeqCst);
    }

    /// Operations are told of in `Location` only, and validation is one.
    pub fn only_locations(&self, only: bool) {
        self.inner.only_locations.store(only, Ordering::SeqCst);
    }

    /// Machines that failed do not say why; only the operation that made them does.
    pub fn silent_failures(&self, silent: bool) {
        self.inner.silent_failures.store(silent, Ordering::SeqCst);
    }

    /// How many things a page has.
    pub fn page(&self, size: u32) {
        self.inner.page.store(size.max(1), Ordering::SeqCst);
    }

    /// The subscription is disabled, or is not.
    pub fn disabled(&self, disabled: bool) {
        self.inner.disabled.store(disabled, Ordering::SeqCst);
    }

    /// How long tokens are good for from now on, and whether those of before still are.
    pub fn tokens(&self, life_s: u64, revoke: bool) {
        self.inner.login.life_s.store(life_s, Ordering::SeqCst);
        if revoke {
            self.inner.login.revoke();
        }
    }

    /// Tokens given so far.
    #[must_use]
    pub fn tokens_given(&self) -> u64 {
        self.inner.login.given()
    }

    /// The application's secret has ended, or has not.
    pub fn expire_secret(&self, expired: bool) {
        self.inner.login.expired.store(expired, Ordering::SeqCst);
    }

    /// Every call so far, failed ones included.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.inner.calls).clone()
    }

    /// How often there was a call of this name.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        lock(&self.inner.calls).iter().filter(|call| call.name == name).count()
    }

    /// Is told of every call.
    #[must_use]
    pub fn watcher(&self) -> &Watcher {
        &self.inner.watcher
    }

    /// Names of all machines there are, those that are being ended included.
    #[must_use]
    pub fn machines(&self) -> Vec<String> {
        lock(&self.inner.world).machines.keys().cloned().collect()
    }

    /// Everything there is that costs money: machines, disks, interfaces, addresses.
    #[must_use]
    pub fn things(&self) -> usize {
        let world = lock(&self.inner.world);
        world.machines.len() + world.disks.len() + world.interfaces.len() + world.addresses.len()
    }

    /// Another power state than the double's own, e.g. `stopped` for a host that switched itself off.
    pub fn power(&self, name: &str, state: &'static str) {
        let mut world = lock(&self.inner.world);
        let Some(machine) = world.machines.get_mut(name) else { return };
        machine.power = state;
        if let Some(boot) = self.inner.boot.as_ref().filter(|_| state != "running") {
            boot.power_off(&machine.booted);
        }
    }

    /// Changes a machine's tags as somebody with the portal could.
    pub fn retag(&self, name: &str, tag: &str, value: &str) {
        if let Some(machine) = lock(&self.inner.world).machines.get_mut(name) {
            machine.tags.insert(tag.to_owned(), value.into());
        }
    }

    /// Ends a machine with all of it, as somebody with the portal could.
    pub fn vanish(&self, name: &str) {
        self.power(name, "deallocated");
        machines::vanish(&self.inner, name);
    }
}

/// What a role permits.
fn actions(role: &str) -> Vec<String> {
    let role: Value = serde_json::from_str(role).expect("a role is JSON");
    let actions = role["Actions"].as_array().expect("a role has actions");
    actions.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

/// Which call it is.
#[derive(Debug)]
enum Target {
    Subscription,
    Group,
    Usages,
    Sizes,
    Gallery(String),
    Marketplace(String),
    Machine(String),
    Machines,
    Console(String),
    Metrics(String),
    Validate,
    Thing(&'static str, String),
    Things(&'static str),
    Operation(String),
}

/// The call a path means, and its name: the permission it needs.
fn route(method: &str, path: &str) -> Option<(String, Target)> {
    let verb = match method {
        "GET" => "read",
        "PUT" => "write",
        "DELETE" => "delete",
        "POST" => "action",
        _ => return None,
    };
    let own = strip(path, &format!("/subscriptions/{SUBSCRIPTION}"));
    let own = own.filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let named = |name: &str, target| Some((name.to_owned(), target));
    if verb == "read" && path.to_lowercase().contains("/galleries/") {
        let what = if path.contains("/versions/") { "images/versions" } else { "images" };
        return named(&format!("Microsoft.Compute/galleries/{what}/read"), Target::Gallery(path.to_owned()));
    }
    let own = own?;
    if let Some(rest) = strip(own, &format!("/resourceGroups/{GROUP}")) {
        return in_group(verb, rest);
    }
    let compute = strip(own, "/providers/Microsoft.Compute/");
    let region = compute.and_then(|rest| strip(rest, &format!("locations/{REGION}/")));
    match (verb, own, compute, region) {
        ("read", "", ..) => named("Microsoft.Resources/subscriptions/read", Target::Subscription),
        ("read", _, Some("skus"), _) => named("Microsoft.Compute/skus/read", Target::Sizes),
        ("read", _, _, Some("usages")) => named("Microsoft.Compute/locations/usages/read", Target::Usages),
        ("read", _, _, Some(rest)) if rest.starts_with("operations/") => named(
            "Microsoft.Compute/locations/operations/read",
            Target::Operation(rest["operations/".len()..].to_owned()),
        ),
        ("read", _, _, Some(rest)) if rest.starts_with("publishers/") => {
            let name = "Microsoft.Compute/locations/publishers/artifacttypes/offers/skus/versions/read";
            named(name, Target::Marketplace(rest.to_owned()))
        }
        _ => None,
    }
}

fn in_group(verb: &str, rest: &str) -> Option<(String, Target)> {
    if rest.is_empty() {
        return (verb == "read")
            .then(|| ("Microsoft.Resources/subscriptions/resourceGroups/read".into(), Target::Group));
    }
    let rest = strip(rest, "/providers/")?;
    let parts: Vec<&str> = rest.split('/').collect();
    let kind = parts.get(..2)?.join("/");
    match (verb, parts.as_slice()) {
        ("action", [_, "deployments", _, "validate"]) => {
            Some(("Microsoft.Resources/deployments/validate/action".into(), Target::Validate))
        }
        ("action", [_, "virtualMachines", name, "retrieveBootDiagnosticsData"]) => {
            Some((format!("{MACHINES}/retrieveBootDiagnosticsData/action"), Target::Console((*name).to_owned())))
        }
        ("read", [_, "virtualMachines", name, "providers", "Microsoft.Insights", "metrics"]) => {
            Some(("Microsoft.Insights/metrics/read".into(), Target::Metrics((*name).to_owned())))
        }
        ("read", [_, "virtualMachines"]) => Some((format!("{MACHINES}/read"), Target::Machines)),
        ("read" | "write" | "delete", [_, "virtualMachines", name]) => {
            Some((format!("{MACHINES}/{verb}"), Target::Machine((*name).to_owned())))
        }
        ("read", [_, _]) => {
            let kind = machines::kind_of(&kind)?;
            Some((format!("{kind}/read"), Target::Things(kind)))
        }
        ("read" | "delete", [_, _, name]) => {
            let kind = machines::kind_of(&kind)?;
            Some((format!("{kind}/{verb}"), Target::Thing(kind, (*name).to_owned())))
        }
        _ => None,
    }
}

/// Azure compares paths without case.
fn strip<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let head = path.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &path[prefix.len()..])
}

async fn handle(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (served, began) = (inner.served.clone(), Instant::now());
    let response = answered(inner, request).await;
    served.count(response.body().size_hint().lower(), began.elapsed());
    response
}

async fn answered(inner: Arc<Inner>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    let (method, path) = (head.method.as_str().to_owned(), head.uri.path().to_owned());
    let query = head.uri.query().unwrap_or_default().to_owned();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(name) = path.strip_prefix("/console/") {
        return console::read(&inner, name, &query, header("authorization").is_some()).into_response();
    }
    let tenant = path.strip_prefix('/').and_then(|path| path.strip_suffix("/oauth2/v2.0/token"));
    let is_metadata = path == "/metadata/identity/oauth2/token";
    let routed = route(&method, &path);
    let name = match (&routed, tenant, is_metadata) {
        (Some((name, _)), ..) => name.clone(),
        (None, Some(_), _) => "token".to_owned(),
        (None, None, true) => "metadata".to_owned(),
        (None, None, false) => format!("{method} {path}"),
    };
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    let call = Call { name: name.clone(), method, path: format!("{path}?{query}"), body: json.clone() };
    lock(&inner.calls).push(call);
    inner.watcher.tell(&name, coalition_cloud_double::Phase::Before);
    let fault = next_fault(&inner, &name);
    let answer = match (&fault, tenant, is_metadata) {
        (Some(Fault::Refuse(code, status)), ..) => Refusal::new(*status, code, words_of(code)).into(),
        (Some(Fault::Answer(status, text)), ..) => {
            Answer { status: *status, headers: Vec::new(), body: text.clone().into_bytes().into() }
        }
        (Some(Fault::Throttle(seconds)), ..) => {
            let refusal = Refusal::new(429, "TooManyRequests", "as the test has it");
            Answer::from(refusal).with("retry-after", seconds.to_string())
        }
        (_, Some(tenant), _) => inner.login.token(tenant, &body),
        (_, None, true) => inner.login.metadata(&query, header("metadata") == Some("true")),
        (_, None, false) => managed(&inner, &name, routed, &query, &head.headers, &json, fault.as_ref()),
    };
    inner.watcher.tell(&name, coalition_cloud_double::Phase::During);
    let response = match fault {
        Some(Fault::LoseAnswer) => answer.cut(),
        Some(Fault::Garble) => Answer { body: "{\"unfinished".into(), ..answer }.into_response(),
        _ => answer.into_response(),
    };
    inner.watcher.tell(&name, coalition_cloud_double::Phase::After);
    response
}

/// `OperationNotAllowed` has several meanings, which only its words tell; here it is the one of quotas.
fn words_of(code: &str) -> &'static str {
    match code {
        "OperationNotAllowed" => {
            "Operation could not be completed as it results in exceeding approved Total Regional Cores quota."
        }
        _ => "as the test has it",
    }
}

fn next_fault(inner: &Inner, name: &str) -> Option<Fault> {
    let mut faults = lock(&inner.faults);
    let queue = faults.iter_mut().find(|(known, queue)| known == name && !queue.is_empty())?;
    queue.1.pop_front()
}

/// A call of the Resource Manager.
fn managed(
    inner: &Inner,
    name: &str,
    routed: Option<(String, Target)>,
    query: &str,
    headers: &HeaderMap,
    body: &Value,
    fault: Option<&Fault>,
) -> Answer {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Err(refusal) = inner.login.check(header("authorization")) {
        return Answer::from(refusal)
            .with("www-authenticate", "Bearer authorization_uri=\"…\", error=\"invalid_token\"".replace('…', "x"));
    }
    if inner.blind.load(Ordering::SeqCst) {
        return Refusal::new(503, "ServiceUnavailable", "as the test has it").into();
    }
    if inner.permitted.as_ref().is_some_and(|permitted| !permitted.contains(name)) {
        let message = format!("The client does not have authorization to perform action '{name}' over scope '/'.");
        return Refusal::new(403, "AuthorizationFailed", message).into();
    }
    let query = form(query);
    match query.get("api-version").map(String::as_str) {
        None => {
            return Refusal::new(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
                .into();
        }
        Some(version) if !VERSIONS.contains(&version) => {
            return Refusal::new(400, "InvalidApiVersionParameter", format!("The api-version '{version}' is invalid."))
                .into();
        }
        Some(_) => {}
    }
    let Some((_, target)) = routed else {
        // Another subscription's or group's things are nothing one may know of.
        return Refusal::new(404, "ResourceGroupNotFound", "Resource group could not be found.").into();
    };
    let only_new = header("if-none-match") == Some("*");
    act(inner, name, target, &query, only_new, body, fault).unwrap_or_else(Answer::from)
}

fn act(
    inner: &Inner,
    name: &str,
    target: Target,
    query: &std::collections::BTreeMap<String, String>,
    only_new: bool,
    body: &Value,
    fault: Option<&Fault>,
) -> Result<Answer, Refusal> {
    let hidden = matches!(fault, Some(Fault::ShowNothing));
    let gone = || Refusal::new(404, "ResourceNotFound", "as the test has it");
    let list = |all: Vec<Value>| Ok(paged(inner, name, if hidden { Vec::new() } else { all }, query));
    match target {
        Target::Subscription => Ok(catalogue::subscription(inner)),
        Target::Group => Ok(catalogue::group()),
        Target::Usages => list(catalogue::usages(inner)),
        Target::Sizes => {
            let wanted = format!("location eq '{REGION}'");
            if query.get("$filter").is_none_or(|filter| *filter != wanted) {
                return Err(Refusal::new(400, "InvalidFilter", "the test expects one region's sizes"));
            }
            list(catalogue::sizes())
        }
        Target::Gallery(path) => catalogue::gallery(&path),
        Target::Marketplace(path) => catalogue::marketplace(&path),
        Target::Machine(vm) if name.ends_with("/write") => machines::put(inner, &vm, body, only_new, fault),
        Target::Machine(vm) if name.ends_with("/delete") => {
            if query.get("forceDeletion").is_some_and(|force| !["true", "false"].contains(&force.as_str())) {
                return Err(Refusal::new(400, "InvalidParameter", "forceDeletion is no boolean"));
            }
            machines::delete(inner, &vm, fault)
        }
        Target::Machine(_) if hidden => Err(gone()),
        Target::Machine(vm) => {
            machines::get(inner, &vm, query.get("$expand").is_some_and(|what| what == "instanceView"))
        }
        Target::Machines => list(machines::list(inner)),
        Target::Console(vm) => console::place(inner, &vm),
        Target::Metrics(vm) => telemetry::metrics(inner, &vm, query, hidden),
        Target::Validate => machines::validate(inner, body),
        Target::Thing(kind, thing) if name.ends_with("/delete") => things::delete(inner, kind, &thing),
        Target::Thing(..) if hidden => Err(gone()),
        Target::Thing(kind, thing) => things::get(inner, kind, &thing),
        Target::Things(kind) => list(things::list(inner, kind)),
        Target::Operation(operation) => machines::operation(inner, &operation),
    }
}

/// One page of a list.
fn paged(inner: &Inner, name: &str, all: Vec<Value>, query: &std::collections::BTreeMap<String, String>) -> Answer {
    let size = usize::try_from(inner.page.load(Ordering::SeqCst)).unwrap_or(1);
    let from: usize = query.get("$skiptoken").and_then(|token| token.parse().ok()).unwrap_or(0);
    let next = from + size;
    let path = lock(&inner.calls).iter().rev().find(|call| call.name == name).map(|call| call.path.clone());
    let path = path.unwrap_or_default();
    let base = path.split("&$skiptoken").next().unwrap_or_default().to_owned();
    let has_more = next < all.len();
    let page: Vec<Value> = all.into_iter().skip(from).take(size).collect();
    let mut body = json!({ "value": page });
    if has_more {
        body["nextLink"] = format!("{}{base}&$skiptoken={next}", inner.endpoint).into();
    }
    Answer::json(200, &body)
}
