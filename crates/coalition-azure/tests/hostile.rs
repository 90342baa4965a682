//! Answers are outside bytes: whatever they are, they are read or refused, and nothing is done because of them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use coalition_azure::*;
use coalition_azure_double::{Double, Fault};
use coalition_cloud::{Cloud, ErrorKind, HostState};
use common::*;
use proptest::prelude::*;

fn machine(name: &str, more: &str) -> String {
    format!(
        r#"{{"name":"{name}","tags":{{"coalition:bridge":"{BRIDGE}","coalition:offer":"azure-we","coalition:instance":"{:032x}"}},
        "properties":{{"provisioningState":"Succeeded","hardwareProfile":{{"vmSize":"x"}}{more}}}}}"#,
        1
    )
}

#[tokio::test]
async fn one_host_answered_oddly_is_refused_or_harmless() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let instance = format!("{:032x}", 1);
    let name = format!("c-{instance}");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let refused = [
        String::new(),
        "null".into(),
        "[]".into(),
        "{}".into(),
        "{\"name\":3,\"properties\":{}}".into(),
        format!("{{\"name\":\"{name}\",\"properties\":{{\"provisioningState\":[]}}}}"),
        deep.clone(),
        machine(&name, &format!(",\"instanceView\":{deep}")),
        machine("c-other", ""),
        machine("../../x", ""),
        machine(&name, ",\"networkProfile\":{\"networkInterfaces\":3}"),
        machine(&name, ",\"instanceView\":{\"statuses\":{}}"),
        "\u{0}".repeat(100),
    ];
    // What is too long is asked for again; what cannot be read is not.
    double.fail(GET, std::iter::repeat_n(Fault::Answer(200, " ".repeat((8 << 20) + 1)), 3));
    let long = azure.hosts(OWNER, Some(&instance)).await.unwrap_err();
    assert!(long.message.contains("longer than 8388608 bytes") && double.count(GET) == 3, "{long}");
    for odd in refused {
        double.fail(GET, [Fault::Answer(200, odd)]);
        let error = azure.hosts(OWNER, Some(&instance)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Transient, "{error}");
        assert!(error.message.len() < 600 && !error.message.contains('\n'), "{error}");
    }
    // Interfaces elsewhere are nobody's addresses: none of this is asked for.
    for id in [
        "https://example.net/",
        "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/bridge-hosts/providers/Microsoft.Network/networkInterfaces/x",
        "/subscriptions/0b1f6471-1bf0-4dda-aec3-cb9272f09590/resourceGroups/other/providers/Microsoft.Network/networkInterfaces/x",
        "/subscriptions/0b1f6471-1bf0-4dda-aec3-cb9272f09590/resourceGroups/bridge-hosts/providers/Microsoft.Network/networkInterfaces/../x",
        "/subscriptions/0b1f6471-1bf0-4dda-aec3-cb9272f09590/resourceGroups/bridge-hosts/providers/Microsoft.Compute/disks/x",
    ] {
        let calls = double.calls().len();
        let odd = machine(&name, &format!(",\"networkProfile\":{{\"networkInterfaces\":[{{\"id\":\"{id}\"}}]}}"));
        double.fail(GET, [Fault::Answer(200, odd)]);
        let hosts = azure.hosts(OWNER, Some(&instance)).await.unwrap();
        assert_eq!(
            (hosts[0].state, hosts[0].public_address, double.calls().len()),
            (HostState::Coming, None, calls + 1)
        );
    }
}

#[tokio::test]
async fn consoles_and_operations_elsewhere_are_not_followed() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let marks = marks(1);
    let name = azure.create(&new_host(&marks)).await.unwrap().id;
    let console = "Microsoft.Compute/virtualMachines/retrieveBootDiagnosticsData/action";
    for place in [
        "http://x.blob.core.windows.net/a",
        "https://example.net/",
        "https://blob.core.windows.net.example.net/",
        "file:///etc/passwd",
        "x",
        "https://169.254.169.254/metadata",
    ] {
        double.fail(console, [Fault::Answer(200, format!("{{\"serialConsoleLogBlobUri\":\"{place}\"}}"))]);
        let error = azure.console(&name).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Transient, "{place}: {error}");
    }
    double.fail(console, [Fault::Answer(200, "{}".into())]);
    assert_eq!(azure.console(&name).await.unwrap(), "");
    // An ending that says nowhere how it goes is looked at itself.
    double.fail(DELETE, [Fault::Answer(202, String::new()), Fault::Answer(200, "nonsense".into())]);
    assert_eq!(azure.end(&name).await.unwrap(), HostState::Stopping);
    assert_eq!(azure.end(&name).await.unwrap(), HostState::Stopping);
    // What an operation says must be read.
    double.fail(LOOK, [Fault::Answer(302, String::new())]);
    let error = azure.end(&name).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Fatal, "{error}");
    assert_eq!(azure.end(&name).await.unwrap(), HostState::Over, "it is taken up again");
}

#[tokio::test]
async fn setups_are_checked_with_both_values_and_the_fix() {
    let double = Double::start(&ROLES, None).await;
    let good = setup(&double);
    let other = SUBNET_ELSEWHERE;
    let wrong: Vec<(Setup, &[&str])> = vec![
        (Setup { subscription: "x".into(), ..good.clone() }, &["subscription", "\"x\"", "GUID"]),
        (Setup { resource_group: "a/b".into(), ..good.clone() }, &["resource group", "a/b"]),
        (Setup { region: "West Europe".into(), ..good.clone() }, &["region", "West Europe", "westeurope"]),
        (Setup { places: vec![], ..good.clone() }, &["places", "at least one"]),
        (Setup { places: vec!["westeurope-1".into()], ..good.clone() }, &["places", "westeurope-1"]),
        (Setup { image: "latest".into(), ..good.clone() }, &["image", "publisher:offer:sku:version"]),
        (Setup { subnet: "default".into(), ..good.clone() }, &["subnet", "virtualNetworks"]),
        (Setup { security_group: Some(good.subnet.clone()), ..good.clone() }, &["security group"]),
        (Setup { quota_family: Some("a b".into()), ..good.clone() }, &["family", "a b"]),
        (
            Setup { confidential_disk: true, secure_boot: false, ..good.clone() },
            &["confidential_disk = true", "secure_boot = false", "switch"],
        ),
        (Setup { subnet: other.into(), ..good.clone() }, &["different subscriptions", "01234567", "0b1f6471"]),
        (
            Setup {
                addresses: Addresses { endpoint: Some("http://127.0.0.1:1".into()), ..good.addresses.clone() },
                ..good.clone()
            },
            &["not encrypted", "https://"],
        ),
    ];
    for (setup, words) in wrong {
        let error = Azure::new(setup).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let azure = Azure::new(good).unwrap();
    assert_eq!((azure.name(), azure.region(), azure.places().len()), ("Azure", "westeurope", 3));
    assert!(!format!("{azure:?}").contains("s3cr"));
    assert_eq!(double.calls().len(), 0);
}

const SUBNET_ELSEWHERE: &str = "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/n/providers/Microsoft.Network/virtualNetworks/v/subnets/s";

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        read_anything(&bytes);
    }

    #[test]
    fn no_documents_panic(
        parts in proptest::collection::vec(
            prop_oneof![
                "\"(value|name|properties|tags|instanceView|statuses|code|message|error|details|status|nextLink|networkProfile|networkInterfaces|id|zones|limit|currentValue|capabilities|locations)\":",
                "[\\[\\]{},]",
                "(null|true|3|-1|1e400|\"[a-zA-Z/.:-]{0,12}\"),?",
            ],
            0..60,
        ),
    ) {
        let text = parts.concat();
        read_anything(text.as_bytes());
        read_anything(format!("{{{text}}}").as_bytes());
        read_anything(format!("{{\"value\":[{{{text}}}]}}").as_bytes());
    }

    #[test]
    fn every_code_has_a_kind(code in "\\PC{0,60}", message in "\\PC{0,60}", status in any::<u16>()) {
        let _ = kind_of(&code, &message, status);
    }

    #[test]
    fn every_size_has_a_family_or_none(size in "\\PC{0,40}") {
        let _ = confidential_family(&size);
    }
}
