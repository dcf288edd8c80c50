//! How all that was begun comes to its end, and what must be true then.

use super::*;

impl World {
    /// Applications send all and take all; whatever is left to be done is done, as long as there is anything.
    pub(super) fn complete(&mut self) {
        self.settle();
        self.compare_windows();
        for end in [0, 1] {
            // With windows of a byte, or of nothing, it would take long, or for ever.
            if self.sides[end].core.local.stream_window < 1_000 {
                self.announce_all(end, 5_000, &[]);
            }
        }
        let mut rounds = 0;
        while self.settle() + self.work() > 0 {
            rounds += 1;
            if rounds % 1_000 == 0 {
                self.advance();
            }
            assert!(rounds < 100_000, "without end");
        }
        for (id, flow) in &self.flows {
            let open = flow.slots.iter().any(Option::is_some);
            assert!(!open, "stream {id} has stalled: {flow:?}");
            let whole = flow.ways.iter().all(|way| way.got == way.sent && way.ended && way.sent == way.planned);
            assert!(flow.torn || whole, "stream {id} is not whole: {flow:?}");
        }
        self.check();
    }

    /// What one end may still send on a stream is what the other still takes.
    fn compare_windows(&self) {
        for flow in self.flows.values().filter(|flow| !flow.torn) {
            let [Some(near), Some(far)] = flow.slots else { continue };
            let streams = [self.sides[0].core.streams.get(near).unwrap(), self.sides[1].core.streams.get(far).unwrap()];
            for end in [0, 1].into_iter().filter(|end| !flow.ways[*end].finished && !self.sides[1 - end].lenient) {
                assert_eq!(streams[end].send_window, streams[1 - end].receive_window, "{flow:?}");
            }
        }
    }

    /// Lets everything arrive; how many bytes that was.
    fn settle(&mut self) -> usize {
        let mut moved = 0;
        loop {
            let said = self.flush(0) + self.flush(1);
            let heard = self.deliver(0, usize::MAX) + self.deliver(1, usize::MAX);
            moved += heard;
            if said + heard == 0 {
                return moved;
            }
        }
    }

    /// What applications do when they do all that they have to; how much that was.
    fn work(&mut self) -> usize {
        let mut done = 0;
        for id in self.flows.keys().copied().collect::<Vec<_>>() {
            let flow = self.flows.get_mut(&id).unwrap();
            if let (true, false, Some(slot)) = (flow.asked, flow.answered, flow.slots[1]) {
                self.sides[1].core.answer(slot, &HeaderMap::new());
                flow.answered = true;
                done += 1;
            }
            for end in [0, 1] {
                let queued = self.flows[&id].ways[1 - end].queued;
                if self.flows[&id].slots[end].is_some() && queued > 0 {
                    self.take_of(id, end, queued);
                    done += 1;
                }
                if self.flows[&id].can_send(end) {
                    done += self.send_on(id, end, usize::MAX);
                }
                let flow = self.flows.get_mut(&id).unwrap();
                let way = &mut flow.ways[end];
                if let (Some(slot), true, false) = (flow.slots[end], way.sent == way.planned && (end == 0 || flow.answered), way.finished) {
                    way.finished = true;
                    self.sides[end].core.finish(slot);
                    done += 1;
                }
                if let (Some(slot), true) = (flow.slots[end], flow.ways[end].finished && flow.ways[1 - end].ended) {
                    flow.slots[end] = None;
                    self.sides[end].core.release(slot);
                    done += 1;
                }
            }
        }
        done
    }

    /// Both ends say farewell, and nothing is left of anything.
    pub(super) fn part(&mut self) {
        self.sides[0].core.go_away();
        self.sides[1].core.go_away();
        self.settle();
        for end in [0, 1] {
            let (side, other) = (&self.sides[end], &self.sides[1 - end]);
            assert!(side.core.is_over() && side.core.later.is_empty() && side.core.block.is_none());
            assert!(side.core.streams.slots() <= side.peak, "slots were leaked: {} at most", side.peak);
            assert_eq!(side.core.send_window, other.core.receive_window, "the windows of both ends agree");
            let whole = i64::from(other.core.window.size().max(65_535));
            assert_eq!(other.core.receive_window + other.core.window.owed(), whole, "every byte came back");
        }
    }
}
