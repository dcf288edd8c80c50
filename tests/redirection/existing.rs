//! Connections that are open while a pod joins and leaves the mesh.

use warren::agent::redirect::Redirect;

use crate::world::{Dial, accept, both_families, connect, listen, talk};

#[test]
fn no_connection_breaks_when_a_pod_joins_or_leaves() {
    both_families(|world| {
        let (outbound, inbound) = (listen(&world.pod, 15001), listen(&world.pod, 15006));
        let (application, server) = (listen(&world.pod, 80), listen(&world.host, 8080));
        let mut old_in = connect(&world.host, world.family.pod, 80, Dial::default());
        let mut old_in_end = accept(&application).stream;
        let mut old_out = connect(&world.pod, world.family.host, 8080, Dial::default());
        let mut old_out_end = accept(&server).stream;
        let mut old = || {
            talk(&mut old_in, &mut old_in_end);
            talk(&mut old_out, &mut old_out_end);
        };
        old();

        world.enrol();
        old();
        let mut captured_out = connect(&world.pod, world.family.host, 8080, Dial::default());
        let mut captured_out_end = accept(&outbound).stream;
        let mut captured_in = connect(&world.host, world.family.pod, 80, Dial::default());
        let mut captured_in_end = accept(&inbound).stream;
        let mut leg = connect(&world.pod, world.family.pod, 80, Dial { marked: true, from: Some(world.family.host) });
        let mut leg_end = accept(&application).stream;
        let mut captured = || {
            talk(&mut captured_out, &mut captured_out_end);
            talk(&mut captured_in, &mut captured_in_end);
            talk(&mut leg, &mut leg_end);
        };
        captured();
        assert_eq!(world.wait(world.redirect().connections(&world.pod)).expect("count"), 2);

        world.enrol();
        old();
        captured();

        world.wait(world.redirect().hold(&world.pod)).expect("hold");
        old();
        captured();
        let mut direct_out = connect(&world.pod, world.family.host, 8080, Dial::default());
        let mut direct_out_end = accept(&server).stream;
        let mut direct_in = connect(&world.host, world.family.pod, 80, Dial::default());
        let mut direct_in_end = accept(&application).stream;
        talk(&mut direct_out, &mut direct_out_end);
        talk(&mut direct_in, &mut direct_in_end);

        world.wait(world.redirect().remove(&world.pod)).expect("remove");
        old();
        talk(&mut direct_out, &mut direct_out_end);
        talk(&mut direct_in, &mut direct_in_end);
    });
}
