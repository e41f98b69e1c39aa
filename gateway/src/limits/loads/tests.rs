use std::time::Duration;

use portcullis_policy::Identity;
use proptest::prelude::*;

use super::*;
use crate::config::resolved::ShareLimit;

fn device(name: &str, user: &str) -> Device {
    Device {
        identity: Identity {
            device: name.into(),
            user: user.into(),
            groups: [].into(),
            network: "default".into(),
            posture: Default::default(),
        },
        public_key: None,
        preshared_key: None,
        addresses: Vec::new(),
        networks: Vec::new(),
        expires: None,
        revoked: false,
        disabled: false,
    }
}

fn limits() -> Limits {
    let few = ShareLimit { device: 3, user: 5, all: 7 };
    Limits { flows: few, half_open: few, associations: few, refusals: few, buffered: few, ..Limits::default() }
}

fn shards(limits: &Limits, count: usize) -> Vec<Loads> {
    let shared = Arc::new(SharedLoads::new(limits, Instant::now()));
    (0..count).map(|_| Loads::new(Arc::clone(&shared))).collect()
}

#[test]
fn the_device_s_own_limit_comes_first_then_the_user_s_then_that_of_all() {
    let mut loads = shards(&limits(), 2);
    let mut share = |shard: usize, name, user| {
        let share = loads[shard].owner(&device(name, user)).share(&[Resource::Flows]);
        share.map_err(LimitName::as_str)
    };
    let held: Vec<_> = (0..3).map(|shard| share(shard % 2, "ann-laptop", "ann").unwrap()).collect();
    assert_eq!(share(0, "ann-laptop", "ann").unwrap_err(), "flows_per_device", "shards count together");
    let _phone = [share(0, "ann-phone", "ann").unwrap(), share(1, "ann-phone", "ann").unwrap()];
    assert_eq!(share(0, "ann-phone", "ann").unwrap_err(), "flows_per_user");
    let _bob = [share(0, "bob", "bob").unwrap(), share(1, "bob", "bob").unwrap()];
    assert_eq!(share(0, "bob", "bob").unwrap_err(), "flows");
    drop(held);
    assert!(share(0, "bob", "bob").is_ok());
}

#[test]
fn a_share_is_whole_or_nothing_and_goes_back_when_it_is_dropped() {
    let mut loads = shards(&Limits { half_open: ShareLimit { device: 1, user: 9, all: 9 }, ..limits() }, 1);
    let owner = loads[0].owner(&device("ann-laptop", "ann"));
    let needed = [Resource::Flows, Resource::HalfOpen];
    let mut share = owner.share(&needed).unwrap();
    assert_eq!(owner.share(&needed).unwrap_err().as_str(), "half_open_per_device");
    assert_eq!(loads[0].flows("ann-laptop"), 1, "what was taken before the refusal went back");
    share.release(Resource::HalfOpen);
    share.release(Resource::HalfOpen);
    let second = owner.share(&needed).unwrap();
    drop((share, second));
    assert_eq!(loads[0].flows("ann-laptop"), 0);
    assert!(owner.loads.iter().all(|load| Resource::ALL.iter().all(|resource| load.held(*resource) == 0)));
}

#[test]
fn a_device_never_has_more_than_two_thirds_of_the_dials() {
    let limits = Limits { dials: ShareLimit { device: 100, user: 100, all: 9 }, ..Limits::default() };
    let mut loads = shards(&limits, 1);
    let ann = loads[0].owner(&device("ann", "ann"));
    let held: Vec<_> = std::iter::from_fn(|| ann.share(&[Resource::Dials]).ok()).collect();
    assert_eq!(held.len(), 6);
    assert_eq!(ann.share(&[Resource::Dials]).unwrap_err().as_str(), "dials_per_device");
    assert!(loads[0].owner(&device("bob", "bob")).share(&[Resource::Dials]).is_ok());
}

#[test]
fn a_device_over_its_rate_costs_its_user_nothing_and_is_told_once_a_second() {
    let limits = Limits { flow_rate: ShareLimit { device: 10, user: 15, all: 1_000 }, ..Limits::default() };
    let mut loads = shards(&limits, 1);
    let laptop = loads[0].owner(&device("ann-laptop", "ann"));
    let phone = loads[0].owner(&device("ann-phone", "ann"));
    let now = Instant::now();
    let admitted = |owner: &Owner| (0..1_000).filter(|_| owner.admit(now).is_ok()).count();
    assert_eq!(admitted(&laptop), 20);
    assert_eq!(laptop.admit(now).unwrap_err().as_str(), "flow_rate_per_device");
    assert_eq!((0..10).filter(|_| phone.admit(now).is_ok()).count(), 10, "what is left of the user's");
    assert_eq!(phone.admit(now).unwrap_err().as_str(), "flow_rate_per_user");
    assert!(laptop.may_tell(now) && !laptop.may_tell(now));
    assert!(!laptop.may_tell(now + Duration::from_millis(999)) && laptop.may_tell(now + Duration::from_secs(1)));
}

#[test]
fn a_device_that_changed_hands_counts_for_its_new_user() {
    let mut loads = shards(&limits(), 1);
    let before = loads[0].owner(&device("laptop", "ann")).share(&[Resource::Flows]).unwrap();
    let owner = loads[0].owner(&device("laptop", "bob"));
    assert_eq!(loads[0].flows("laptop"), 1, "the device's own flows are still its own");
    let after = owner.share(&[Resource::Flows]).unwrap();
    assert_eq!(owner.loads[1].held(Resource::Flows), 1);
    drop((before, after));
    assert_eq!(loads[0].flows("laptop"), 0);
}

#[test]
fn names_that_nobody_uses_are_forgotten() {
    let mut loads = shards(&limits(), 1);
    for number in 0..10_000 {
        loads[0].owner(&device(&format!("device-{number}"), "user"));
        loads[0].keep(|_| false);
    }
    let names = loads[0].shared.names.lock().unwrap();
    assert!(names.devices.len() < 1_000, "{}", names.devices.len());
}

#[derive(Debug, Clone)]
enum Step {
    Open(usize, usize, u8),
    Release(usize, usize),
    End(usize),
    Forget(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..3, 0usize..4, any::<u8>()).prop_map(|(shard, device, resources)| Step::Open(shard, device, resources)),
        1 => (any::<usize>(), 0usize..5).prop_map(|(flow, resource)| Step::Release(flow, resource)),
        2 => any::<usize>().prop_map(Step::End),
        1 => (0usize..3).prop_map(Step::Forget),
    ];
    proptest::collection::vec(step, 0..300)
}

/// Those that a flow takes one of.
const COUNTED: [Resource; 5] =
    [Resource::Flows, Resource::HalfOpen, Resource::Dials, Resource::Associations, Resource::Refusals];
/// Two of one user and two others.
const DEVICES: [(&str, &str); 4] = [("a", "ann"), ("b", "ann"), ("c", "cid"), ("d", "dot")];

proptest! {
    /// Whatever opens, changes state and ends in whichever shard, also while a reload makes shards forget devices: no
    /// limit is exceeded, and the counts are those of the shares there are.
    #[test]
    fn bounds_are_never_exceeded(steps in steps()) {
        let limits = Limits { dials: ShareLimit { device: 2, user: 2, all: 3 }, ..limits() };
        let mut loads = shards(&limits, 3);
        let mut flows: Vec<(usize, Share)> = Vec::new();
        for step in steps {
            match step {
                Step::Open(shard, who, resources) => {
                    let wanted: Vec<_> =
                        COUNTED.into_iter().enumerate().filter(|(i, _)| resources >> i & 1 == 1).map(|(_, r)| r).collect();
                    let (name, user) = DEVICES[who];
                    let held = |resource: Resource, scope: Scope| flows.iter().filter(|(other, share)| {
                        share.holds(resource) && match scope {
                            Scope::Device => *other == who,
                            Scope::User => DEVICES[*other].1 == user,
                            Scope::All => true,
                        }
                    }).count();
                    // A naive count of what there is says which limit is the first to say no.
                    let expected = wanted.iter().find_map(|resource| {
                        Scope::ALL.into_iter().find_map(|scope| {
                            let limit = limits.share(*resource).of(scope);
                            (held(*resource, scope) >= limit).then_some(LimitName::Share(*resource, scope))
                        })
                    });
                    let share = loads[shard].owner(&device(name, user)).share(&wanted);
                    prop_assert_eq!(share.as_ref().err(), expected.as_ref());
                    flows.extend(share.ok().map(|share| (who, share)));
                }
                Step::Release(flow, resource) => {
                    let count = flows.len().max(1);
                    if let Some((_, share)) = flows.get_mut(flow % count) {
                        share.release(COUNTED[resource]);
                    }
                }
                Step::End(flow) => {
                    if !flows.is_empty() {
                        let index = flow % flows.len();
                        flows.swap_remove(index);
                    }
                }
                Step::Forget(shard) => loads[shard].keep(|_| false),
            }
        }
        flows.clear();
        let all = &loads[0].shared.all;
        prop_assert!(Resource::ALL.iter().all(|resource| all.held(*resource) == 0));
    }
}
