//! The streams of a connection, in slots that stay put while a stream lives.

use serde::{Deserialize, Serialize};

use super::Slot;

/// Half of a stream (RFC 9113 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Half {
    /// Request or response has not come (or gone) yet.
    Head,
    /// Bytes may come (or go).
    Open,
    /// Ended, by END_STREAM or by a reset.
    Done,
}

/// State of one stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) send: Half,
    pub(super) receive: Half,
    /// What the peer takes (§6.9); below zero after it made its windows smaller.
    pub(super) send_window: i64,
    /// What the peer may still send.
    pub(super) receive_window: i64,
    /// What has been taken here and not been told to the peer yet.
    pub(super) owed: u32,
    /// Ended by a reset of either side: nothing more is said about it.
    pub(super) reset: bool,
}

impl Stream {
    pub(super) fn is_over(&self) -> bool {
        self.send == Half::Done && self.receive == Half::Done
    }
}

/// Streams by slot and by id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Table {
    slots: Vec<Option<Stream>>,
    free: Vec<u32>,
    /// Sorted by id: ids only grow.
    ids: Vec<(u32, u32)>,
}

impl Table {
    /// `stream.id` is larger than all before.
    pub(super) fn insert(&mut self, stream: Stream) -> Slot {
        let id = stream.id;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        if let Some(slot) = self.slots.get_mut(index as usize) {
            *slot = Some(stream);
        }
        self.ids.push((id, index));
        Slot(index)
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Stream> {
        let stream = self.slots.get_mut(slot.0 as usize)?.take()?;
        self.free.push(slot.0);
        if let Ok(at) = self.ids.binary_search_by_key(&stream.id, |(id, _)| *id) {
            self.ids.remove(at);
        }
        Some(stream)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Stream> {
        self.slots.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Stream> {
        self.slots.get_mut(slot.0 as usize)?.as_mut()
    }

    pub(super) fn find(&mut self, id: u32) -> Option<(Slot, &mut Stream)> {
        let at = self.ids.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let slot = Slot(self.ids.get(at)?.1);
        Some((slot, self.get_mut(slot)?))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Stream)> {
        let slots = self.slots.iter_mut().zip(0..);
        slots.filter_map(|(stream, index)| Some((Slot(index), stream.as_mut()?)))
    }

    /// Whether there are as many streams as `limit` says, those that are over not counted (§5.1.2).
    pub(super) fn are_full(&self, limit: u32) -> bool {
        let limit = limit as usize;
        self.ids.len() >= limit && self.slots.iter().flatten().filter(|stream| !stream.is_over()).count() >= limit
    }

    /// Slots that have been needed so far.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}
