use dragonfly_swarm::membership::{LeastConnected, MemberInfo, Settings, Swarm};

#[test]
fn hist() {
    for n in [20u32, 100, 1000] {
        let mut s: Swarm<u32> = Swarm::new(Settings::default(), Box::new(LeastConnected), 1);
        s.join(
            0,
            MemberInfo {
                seed: true,
                ..Default::default()
            },
        )
        .unwrap();
        s.assign_leases();
        for i in 1..=n {
            s.join(i, MemberInfo::default()).unwrap();
        }
        let mut h = std::collections::BTreeMap::new();
        for i in 1..=n {
            *h.entry(s.neighbours(i).len()).or_insert(0) += 1;
        }
        println!("{n} seed {} {h:?}", s.neighbours(0).len());
    }
}
