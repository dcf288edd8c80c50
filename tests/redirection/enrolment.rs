//! What is in force can be read back, repeated, and removed without a trace.

use std::net::Ipv4Addr;

use warren::agent::redirect::nft::Nft;
use warren::agent::redirect::{Options, Redirect, State, routes};

use crate::world::{Dial, accept, both_families, connect, listen, talk};

#[test]
fn the_state_is_read_back_from_the_kernel() {
    both_families(|world| {
        let redirect = world.redirect();
        let state = || world.wait(redirect.state(&world.pod)).expect("state");
        assert_eq!(state(), State::Absent);
        for _ in 0..2 {
            world.wait(redirect.apply(&world.pod)).expect("apply");
            assert_eq!((state(), world.policy_rules()), (State::Redirecting, 1));
        }
        let other = Nft::new(Options { probe_v4: Ipv4Addr::new(169, 254, 7, 1), ..Options::default() });
        assert_eq!(world.wait(other.state(&world.pod)).expect("state"), State::Outdated, "other options are other rules");
        world.wait(routes::remove(&world.pod)).expect("somebody removes the routes");
        assert_eq!(state(), State::Outdated);
        world.wait(redirect.apply(&world.pod)).expect("apply");
        assert_eq!(state(), State::Redirecting);
        world.wait(redirect.hold(&world.pod)).expect("hold");
        assert_eq!(state(), State::Holding);
        world.wait(redirect.apply(&world.pod)).expect("apply");
        assert_eq!(state(), State::Redirecting);
        for _ in 0..2 {
            world.wait(redirect.remove(&world.pod)).expect("remove");
            assert_eq!((state(), world.policy_rules()), (State::Absent, 0));
        }
    });
}

#[test]
fn after_removal_connections_go_direct_again() {
    both_families(|world| {
        let (server, application) = (listen(&world.host, 8080), listen(&world.pod, 80));
        world.enrol();
        world.wait(world.redirect().remove(&world.pod)).expect("remove");
        let mut out = connect(&world.pod, world.family.host, 8080, Dial::default());
        talk(&mut out, &mut accept(&server).stream);
        let mut into = connect(&world.host, world.family.pod, 80, Dial::default());
        talk(&mut into, &mut accept(&application).stream);
    });
}
