//! Where a thread is while it visits namespaces, and afterwards.

use std::panic::{AssertUnwindSafe, catch_unwind};

use warren::net::NetNs;
use warren::net::netns::NetNsId;

use crate::world::both_families;

fn here() -> NetNsId {
    NetNs::current().expect("own namespace").id()
}

#[test]
fn visits_may_be_nested_and_end_where_they_began_also_by_a_panic() {
    both_families(|world| {
        let home = here();
        let ids = world
            .pod
            .run(|| {
                let inner = world.host.run(here).expect("enter");
                let again = world.pod.run(here).expect("enter");
                (here(), inner, again)
            })
            .expect("enter");
        assert_eq!(ids, (world.pod.id(), world.host.id(), world.pod.id()));
        assert_eq!(here(), home);

        let result = catch_unwind(AssertUnwindSafe(|| world.pod.run(|| world.host.run(|| panic!("in the middle of a visit")))));
        assert!(result.is_err());
        assert_eq!(here(), home);
    });
}

#[test]
fn a_thread_that_moved_visits_from_its_new_place() {
    both_families(|world| {
        let (home, pod, host) = (NetNs::current().expect("own namespace"), world.pod.clone(), world.host.clone());
        let moved = std::thread::spawn(move || {
            // Its first home is known by now, and is no longer where it belongs.
            pod.run(here).expect("enter");
            host.enter().expect("enter");
            let visited = home.run(here).expect("enter");
            assert_eq!((visited, here()), (home.id(), host.id()));
        });
        moved.join().expect("the thread ended well");
    });
}
