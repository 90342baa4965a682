//! The operator's page: loopback only, bearer token, no requester in sight.
//!
//! `/` is a static page without data; it asks for the token and sends it in a header. `/api/status` is the data as JSON,
//! `/metrics` the same for Prometheus. A token in a URL is never accepted.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use crate::status::Snapshot;

const PAGE: &str = include_str!("dashboard.html");

/// Why the page is not served.
#[derive(Debug, thiserror::Error)]
pub enum DashboardError {
    /// The port is taken.
    #[error("the dashboard cannot listen on {address}; choose another `dashboard.port` (0 takes a free one)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Makes the data of one answer.
pub type SnapshotMaker = dyn Fn() -> Snapshot + Send + Sync;

struct Shared {
    token: Zeroizing<String>,
    snapshot: Box<SnapshotMaker>,
}

/// A page that is being served; it stops when dropped.
pub struct Dashboard {
    /// Where it listens.
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Dashboard {
    /// Serves on a loopback port; 0 takes a free one.
    ///
    /// # Errors
    /// [`DashboardError::Listen`].
    pub async fn start(
        port: u16,
        token: Zeroizing<String>,
        snapshot: Box<SnapshotMaker>,
    ) -> Result<Self, DashboardError> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |source| DashboardError::Listen { address: wanted, source };
        let listener = TcpListener::bind(wanted).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let router = Router::new()
            .route("/", get(page))
            .route("/api/status", get(status))
            .route("/metrics", get(metrics))
            .with_state(Arc::new(Shared { token, snapshot }));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "the dashboard ended");
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = (status, body.into()).into_response();
    let headers = response.headers_mut();
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Compares in a time that depends on neither token nor guess.
fn admitted(shared: &Shared, headers: &HeaderMap) -> bool {
    let given =
        headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| value.strip_prefix(b"Bearer "));
    // Hashes have one length, so the comparison does not tell the token's.
    let digest = |bytes: &[u8]| *blake3::hash(bytes).as_bytes();
    given.is_some_and(|given| digest(given).ct_eq(&digest(shared.token.as_bytes())).into())
}

fn refused() -> Response {
    let mut response =
        answer(StatusCode::UNAUTHORIZED, "text/plain; charset=utf-8", "send the token as `Authorization: Bearer …`\n");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

async fn page() -> Response {
    answer(StatusCode::OK, "text/html; charset=utf-8", PAGE)
}

async fn status(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if !admitted(&shared, &headers) {
        return refused();
    }
    match serde_json::to_vec(&(shared.snapshot)()) {
        Ok(json) => answer(StatusCode::OK, "application/json", json),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", error.to_string()),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if !admitted(&shared, &headers) {
        return refused();
    }
    let text = prometheus(&(shared.snapshot)());
    answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let escape = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let list: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if list.is_empty() { String::new() } else { format!("{{{}}}", list.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// The snapshot in Prometheus' text format.
#[must_use]
pub fn prometheus(snapshot: &Snapshot) -> String {
    let mut text = Text(String::new());
    text.family("compute_bridge_grants", "gauge", "Grants in the journal by state.");
    for (state, count) in &snapshot.grants {
        text.sample("compute_bridge_grants", &[("state", state)], count);
    }
    text.single("compute_bridge_card_live", "gauge", "1 when the card is in the market.", u8::from(snapshot.card_live));
    text.single(
        "compute_bridge_card_stale",
        "gauge",
        "1 when the market considers the card too old.",
        u8::from(snapshot.card_stale),
    );
    text.family("compute_bridge_posture", "gauge", "1, labelled with what vouches for the bridge.");
    text.sample("compute_bridge_posture", &[("label", &snapshot.posture)], 1);
    text.single("compute_bridge_bonds", "gauge", "Live grants bound to the card.", snapshot.bonds);
    text.single(
        "compute_bridge_orphans_destroyed_total",
        "counter",
        "Instances no live grant explained.",
        snapshot.orphans_destroyed,
    );
    backends(&mut text, snapshot);
    text.family("compute_bridge_refusals_total", "counter", "Grants given back, by reason.");
    for (reason, count) in &snapshot.refusals {
        text.sample("compute_bridge_refusals_total", &[("reason", reason)], count);
    }
    let earned = &snapshot.earnings;
    text.single(
        "compute_bridge_logged_grants",
        "gauge",
        "Grants with a certified final log, as far as remembered.",
        earned.grants_logged,
    );
    text.single(
        "compute_bridge_cpu_core_seconds",
        "gauge",
        "Certified CPU use of those grants.",
        earned.usage.cpu_core_seconds,
    );
    text.single(
        "compute_bridge_ram_mib_seconds",
        "gauge",
        "Certified memory use of those grants.",
        earned.usage.ram_mib_seconds,
    );
    text.single("compute_bridge_net_bytes", "gauge", "Certified network use of those grants.", earned.usage.net_bytes);
    text.single(
        "compute_bridge_revenue_micro_usd",
        "gauge",
        "Estimated worth of those grants, in millionths of a USD.",
        earned.revenue.0,
    );
    text.0
}

fn backends(text: &mut Text, snapshot: &Snapshot) {
    type Column = (&'static str, &'static str, fn(&crate::status::BackendStatus) -> u64);
    let columns: [Column; 5] = [
        ("compute_bridge_backend_reachable", "1 when the backend answered.", |b| u64::from(b.reachable)),
        ("compute_bridge_backend_cpu_millicores", "Declared CPU.", |b| u64::from(b.cpu_millicores)),
        ("compute_bridge_backend_ram_mib", "Declared memory.", |b| u64::from(b.ram_mib)),
        ("compute_bridge_backend_free_cpu_millicores", "CPU no live grant holds.", |b| b.free_cpu_millicores),
        ("compute_bridge_backend_free_ram_mib", "Memory no live grant holds.", |b| b.free_ram_mib),
    ];
    for (name, help, value) in columns {
        text.family(name, "gauge", help);
        for backend in &snapshot.backends {
            text.sample(name, &[("backend", &backend.name)], value(backend));
        }
    }
    text.family("compute_bridge_backend_isolation", "gauge", "1, labelled with the isolation workloads get.");
    for backend in &snapshot.backends {
        let level = backend.isolation.as_deref().unwrap_or("unknown");
        text.sample("compute_bridge_backend_isolation", &[("backend", &backend.name), ("level", level)], 1);
    }
    text.family("compute_bridge_attempts_total", "counter", "Tries at provisioning, by result.");
    for backend in &snapshot.backends {
        for (result, count) in &backend.attempts {
            text.sample("compute_bridge_attempts_total", &[("backend", &backend.name), ("result", result)], count);
        }
    }
}
