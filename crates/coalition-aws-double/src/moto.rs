//! Moto's server as a child process, with checks switched on, and one user with the permissions under test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::http::{all_between, between, client};

/// The region everything is in.
pub const REGION: &str = "eu-central-1";
/// Calls that are answered unchecked while everything is prepared.
const UNCHECKED: u32 = 5;
/// Wait for the server; starting Python takes a second or two on a quiet machine.
const START: Duration = Duration::from_secs(60);

/// Access keys of the user with the permissions under test.
#[derive(Clone)]
pub struct Keys {
    /// Id.
    pub id: String,
    /// Secret.
    pub secret: String,
}

/// The server.
pub struct Moto {
    child: Child,
    /// Where it listens.
    pub endpoint: String,
    /// The user.
    pub keys: Keys,
    /// Subnets, one per zone.
    pub subnets: Vec<String>,
    /// The default security group.
    pub security_group: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Moto {
    /// Amazon Linux, 64-bit: one of the images moto knows.
    pub const IMAGE: &'static str = "ami-04681a1dbd79675a5";

    /// Starts the server and makes the user; `None`, with a word, when it is not installed.
    #[allow(clippy::print_stderr)]
    pub(crate) async fn start(policy: &str) -> Option<Self> {
        let Some(program) = find() else {
            eprintln!("skipped: moto_server is not on the path (.ci/python-venv installs it into target/venv)");
            return None;
        };
        let port = free_port();
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .env("INITIAL_NO_AUTH_ACTION_COUNT", UNCHECKED.to_string())
            .env("MOTO_ENABLE_KEYPAIR_VALIDATION", "true")
            .env("MOTO_ENABLE_AMI_VALIDATION", "true")
            .env("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "true")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto_server can be started");
        let endpoint = format!("http://127.0.0.1:{port}");
        let keys = Keys { id: String::new(), secret: String::new() };
        let mut moto = Self { child, endpoint, keys, subnets: Vec::new(), security_group: String::new() };
        moto.until_listening(port).await;
        moto.prepare(policy).await;
        Some(moto)
    }

    async fn until_listening(&mut self, port: u16) {
        let until = tokio::time::Instant::now() + START;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(self.child.try_wait().expect("the child can be asked").is_none(), "moto_server ended");
            assert!(tokio::time::Instant::now() < until, "moto_server does not listen within {START:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn prepare(&mut self, policy: &str) {
        self.unchecked("iam", "Action=CreateUser&Version=2010-05-08&UserName=bridge").await;
        let body = format!(
            "Action=PutUserPolicy&Version=2010-05-08&UserName=bridge&PolicyName=bridge&PolicyDocument={}",
            widened(policy).bytes().map(|byte| format!("%{byte:02X}")).collect::<String>()
        );
        let put = self.unchecked("iam", &body).await;
        assert!(put.contains("PutUserPolicyResponse"), "moto does not take the policy: {put}");
        let key = self.unchecked("iam", "Action=CreateAccessKey&Version=2010-05-08&UserName=bridge").await;
        let part = |name: &str| between(&key, name).unwrap_or_else(|| panic!("no {name}: {key}"));
        self.keys = Keys { id: part("AccessKeyId"), secret: part("SecretAccessKey") };
        let subnets = self.unchecked("ec2", "Action=DescribeSubnets&Version=2016-11-15").await;
        self.subnets = all_between(&subnets, "subnetId");
        let groups = self.unchecked("ec2", "Action=DescribeSecurityGroups&Version=2016-11-15").await;
        self.security_group = between(&groups, "groupId").expect("there is a default group");
        assert!(self.subnets.len() > 1, "{subnets}");
    }

    /// A call while nothing is checked yet; the header only says which service is meant.
    async fn unchecked(&self, service: &str, body: &str) -> String {
        let scope = format!("x/20260101/{REGION}/{service}/aws4_request");
        let sent = client()
            .post(&self.endpoint)
            .header("authorization", format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.to_owned())
            .send()
            .await
            .expect("moto answers");
        sent.text().await.expect("moto answers in text")
    }
}

/// The policy for things of any name and without conditions: moto compares actions only, and asks about the resource `*`.
fn widened(policy: &str) -> String {
    let mut policy: serde_json::Value = serde_json::from_str(policy).expect("a policy is JSON");
    for statement in policy["Statement"].as_array_mut().expect("a policy has statements") {
        // Moto goes by the name in the signature, which for CloudWatch is not that in permissions.
        let actions = statement["Action"].as_array_mut().expect("a statement has actions");
        for action in actions {
            let named = action.as_str().unwrap_or_default().replace("cloudwatch:", "monitoring:");
            *action = named.into();
        }
        statement["Resource"] = "*".into();
        statement.as_object_mut().expect("a statement is an object").remove("Condition");
    }
    policy.to_string()
}

/// The program, on the path or where `.ci/python-venv` puts it.
fn find() -> Option<PathBuf> {
    let on_path =
        std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/bin"));
    on_path.chain([own]).map(|dir| dir.join("moto_server")).find(|program| program.exists())
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it has an address").port()
}
