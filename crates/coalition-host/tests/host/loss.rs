use coalition_host::{IsolationLevel, Phase};

use super::harness::{As, Host};

#[test]
fn losses_are_said_and_true() {
    for host in Host::each() {
        let grant = host.start(|_| {});
        let Phase::Ready { isolation, .. } = &grant.state.as_ref().unwrap().phase else { panic!() };
        let lost = |text: &str| isolation.losses.iter().any(|l| l.contains(text));
        match host.kind {
            As::Root => assert!(isolation.level == IsolationLevel::RootNamespaces && isolation.losses.len() == 1),
            As::User => {
                assert!(lost("memory limit is per process, not per grant") && lost("only user id 0"));
                let seen = grant.ssh("touch /tmp/x; chown 5 /tmp/x && echo CHANGED");
                assert!(!seen.out.contains("CHANGED"));
            }
            As::Bare => {
                assert!(lost("sees the host's files") && lost("no network of its own"));
                let me = format!("test -e {} && echo SEEN", host.image.display());
                assert_eq!(grant.ssh(&me).out, "SEEN\n", "the loss is real, so it must be stated");
            }
        }
        grant.clean();
    }
}
