//! Measurements; not run by default. docs/BENCHMARKS.md has the command and the numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use coalition::{RequestId, UniqueId};
use coalition_aws::Ec2Region;
use coalition_aws_double::Double;
use coalition_cloud::{Cloud as Api, Marks, NewHost};
use compute_bridge::backend::{Backend, InstanceName};
use compute_bridge::inventory::{Standing, look, take};
use compute_bridge::journal::{Event, GrantState};

use super::accounts::Hosts;
use super::cloud::{Cloud, POLICY};
use super::harness::*;
use super::world::provider;

const INSTANCES: u32 = 1_000;

/// A grant whose instance was told to be made.
fn state(number: u32) -> (RequestId, GrantState) {
    let id = RequestId(UniqueId::hash(&number.to_be_bytes()));
    let granted = coalition_compute::ComputeGrant { request_id: id, ..grant("aws", 600_000) };
    let instance = InstanceName::derive(&provider(), &id, 0);
    let provisioning = Event::Provisioning { backend: "aws".parse().unwrap(), instance };
    (id, GrantState::new(granted).apply(&Event::Opening).unwrap().apply(&provisioning).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: see docs/BENCHMARKS.md"]
async fn a_sweep_of_a_thousand_instances() {
    let Some(hosts) = Hosts::new() else { return };
    // Nothing boots: what is measured is the account.
    let Some(double) = Double::start(POLICY, None).await else { return };
    let cloud = Cloud { double, hosts };
    let region = Ec2Region::new(cloud.region()).unwrap();
    let open: BTreeMap<RequestId, GrantState> = (0..INSTANCES).map(state).collect();
    let began = Instant::now();
    for (id, state) in &open {
        let marks = Marks {
            bridge: provider().to_string(),
            offer: "aws".into(),
            instance: state.instance().unwrap().1.to_string(),
            coalition: UniqueId::hash(b"c").to_string(),
            grant: id.to_string(),
            until_s: 1_900_000_000,
        };
        let new = NewHost {
            marks: &marks,
            place: &region.places()[0],
            size: "m6a.large",
            confidential: None,
            user_data: b"#cloud-config\n{}\n",
            disk_gib: 20,
            longest_s: 900,
        };
        region.create(&new).await.unwrap();
    }
    eprintln!("{INSTANCES} instances made in {:?}", began.elapsed());
    let backends: Vec<Arc<dyn Backend>> = vec![cloud.backend()];
    for round in 0..5 {
        let began = Instant::now();
        let seen = look(&backends).await;
        let listed = began.elapsed();
        let found = take(&open, &seen, &BTreeSet::new(), compute_bridge::now_ms());
        let all = began.elapsed();
        assert_eq!((found.count(Standing::Owned), found.is_clean()), (INSTANCES as usize, true));
        eprintln!("round {round}: listed in {listed:?}, held against the journal in {:?}", all.saturating_sub(listed));
    }
    let calls = cloud.double.proxy.count("DescribeInstances") + cloud.double.proxy.count("DescribeVolumes");
    eprintln!("{calls} listing calls in all");
}
