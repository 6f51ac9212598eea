//! Nodes that ask each other whether their tables have let go of a pod.

use std::collections::{BTreeSet, HashSet};
use std::sync::mpsc;

use tokio_util::sync::CancellationToken;

use super::peers::{Host, on_a_switch};
use super::*;

/// Long enough for an answer that must not come.
const MEANWHILE: Duration = Duration::from_millis(300);

impl Host {
    fn commit(&self, revision: u64) {
        let withdrawal = &self.network.inner.services.withdrawal;
        withdrawal.publish(HashSet::new(), revision);
    }

    /// Whether all others have reached the revision.
    fn settled(&self, revision: u64) -> bool {
        let inner = &self.network.inner;
        let others = || inner.others.settled(inner.node_address, revision);
        self.namespace.block_on(others)
    }

    /// Answers until it is told to stop.
    fn answer(&self, stop: &CancellationToken) {
        let answering = self.network.clone().answer_others();
        let work = || stop.run_until_cancelled(answering);
        self.namespace.block_on(work);
    }
}

#[test]
fn a_pod_ends_after_the_other_nodes_have_let_go() {
    let (_switch, hosts) = on_a_switch::<3>();
    let [a, b, c] = &hosts;
    for host in [a, b, c] {
        let others: Vec<_> = hosts.iter().filter(|o| o.address != host.address).collect();
        host.reach(&others);
        let ready: BTreeSet<_> = others.iter().map(|o| o.network.node_address()).collect();
        host.network.inner.others.set(ready);
    }
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        // Also when a part of the test fails: nobody answers for ever.
        let _stopping = stop.clone().drop_guard();
        for host in [b, c] {
            scope.spawn(|| host.answer(&stop));
        }
        b.commit(7);
        c.commit(6);
        let (done, settled) = mpsc::channel();
        scope.spawn(move || done.send(a.settled(7)));
        assert!(settled.recv_timeout(MEANWHILE).is_err(), "c is behind");
        c.commit(9);
        assert_eq!(settled.recv_timeout(PATIENCE), Ok(true));
        // What they have already is answered at once.
        assert!(a.settled(7));

        // A node that is cut off does not answer, and can't be asked for ever.
        c.namespace.ip("link set eth0 down");
        assert!(!a.settled(7));
        assert!(!a.settled(7));
        c.namespace.ip("link set eth0 up");
        // The link took its routes with it.
        c.reach(&[a, b]);
        let deadline = std::time::Instant::now() + PATIENCE;
        while !a.settled(7) {
            assert!(std::time::Instant::now() < deadline, "it answers again");
        }
        // Strangers are not answered.
        b.network.inner.others.set(BTreeSet::new());
        assert!(!a.settled(7));
    });
}
