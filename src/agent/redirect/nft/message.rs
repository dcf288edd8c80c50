//! Netlink messages of the nf_tables subsystem, as bytes. Header fields have the host's order, nf_tables attributes
//! network order.

/// Attribute and message numbers are the kernel's (`linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`).
pub(super) mod number {
    pub(crate) const NLMSG_ERROR: u16 = 2;
    pub(crate) const NLMSG_DONE: u16 = 3;
    pub(crate) const BATCH_BEGIN: u16 = 0x10;
    pub(crate) const BATCH_END: u16 = 0x11;
    pub(crate) const SUBSYSTEM: u16 = 10;
    pub(crate) const NEW_TABLE: u16 = SUBSYSTEM << 8;
    pub(crate) const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
    pub(crate) const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
    pub(crate) const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
    pub(crate) const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
    pub(crate) const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
    pub(crate) const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
    pub(crate) const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
    pub(crate) const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
    pub(crate) const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP: u16 = 0x300;
    /// Only if it does not exist.
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
    /// In an error: attributes follow the header of the message that it is about.
    pub(crate) const ACK_TLVS: u16 = 0x200;
    pub(crate) const NESTED: u16 = 0x8000;
}

/// Length of a message header with the nf_tables part: 16 + 4 bytes.
pub(super) const HEADER: usize = 20;

/// Attributes of one level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) -> &mut Self {
        let mut inner = Attributes::default();
        fill(&mut inner);
        self.bytes(kind | number::NESTED, &inner.0)
    }
}

/// What a message is, and about which family (0 for the frame of a batch).
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) family: u8,
}

/// One message with its sequence number.
pub(super) fn message(head: Head, sequence: u32, attributes: &Attributes) -> Vec<u8> {
    // A batch's frame says for which subsystem it is; other messages leave the field empty.
    let resource = if head.family == 0 { number::SUBSYSTEM } else { 0 };
    let length = u32::try_from(HEADER + attributes.0.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + attributes.0.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(head.kind.to_ne_bytes());
    bytes.extend((head.flags | number::REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([head.family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(&attributes.0);
    bytes
}

/// A message of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// What follows the 16 bytes of the general header.
    pub(super) body: &'a [u8],
}

/// The messages of one datagram; stops at what is cut short.
pub(super) fn replies(mut datagram: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let body = datagram.get(16..length)?;
        let reply = Reply { kind: u16_at(datagram, 4)?, flags: u16_at(datagram, 6)?, sequence: u32_at(datagram, 8)?, body };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(reply)
    })
}

/// An error reply: the number (0 is success) and the kernel's text about it.
pub(super) fn error(reply: &Reply<'_>) -> Option<(i32, Option<String>)> {
    const MESSAGE: u16 = 1;
    if reply.kind != number::NLMSG_ERROR {
        return None;
    }
    let number = i32::from_ne_bytes(reply.body.get(..4)?.try_into().ok()?);
    // CAP_ACK is set on the socket: of the message in question only the 16-byte header is repeated.
    let text = if reply.flags & number::ACK_TLVS == 0 { None } else { reply.body.get(20..).and_then(|rest| find(rest, MESSAGE)) };
    let text = text.map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    Some((-number, text))
}

/// The value of the first attribute of that kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(at, _)| *at == kind).map(|(_, value)| value)
}

/// Kind and value of every attribute of one level; stops at what is cut short.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let (kind, value) = (u16_at(bytes, 2)? & !number::NESTED, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut attributes = Attributes::default();
        attributes.text(1, "ab").number(2, 7).nest(3, |inner| {
            inner.bytes(9, b"xyz");
        });
        assert_eq!(attributes.0.len() % 4, 0);
        assert_eq!(find(&attributes.0, 1), Some(&b"ab\0"[..]));
        assert_eq!(find(&attributes.0, 2), Some(&[0, 0, 0, 7][..]));
        assert_eq!(find(find(&attributes.0, 3).expect("nested"), 9), Some(&b"xyz"[..]));
        assert_eq!(find(&attributes.0, 4), None);
    }

    #[test]
    fn errors_carry_the_kernels_text() {
        let reply = |flags, tail: &[u8]| {
            let mut body = (-95_i32).to_ne_bytes().to_vec();
            body.resize(20, 0);
            body.extend(tail);
            error(&Reply { kind: number::NLMSG_ERROR, flags, sequence: 0, body: &body })
        };
        let mut text = Attributes::default();
        text.text(1, "Unsupported chain type");
        assert_eq!(reply(0, &[]), Some((95, None)));
        assert_eq!(reply(number::ACK_TLVS, &text.0), Some((95, Some("Unsupported chain type".to_owned()))));
        assert_eq!(reply(number::ACK_TLVS, &text.0[..9]), Some((95, None)), "cut short");
        assert_eq!(error(&Reply { kind: number::NLMSG_ERROR, flags: 0, sequence: 0, body: &[1] }), None);
    }

    #[test]
    fn replies_that_are_cut_or_lie_about_their_length_end_the_list() {
        let whole = message(Head { kind: number::NEW_TABLE, flags: 0, family: 2 }, 5, Attributes::default().text(1, "t"));
        let mut two = [whole.clone(), whole.clone()].concat();
        assert_eq!(replies(&two).map(|reply| (reply.kind, reply.sequence)).collect::<Vec<_>>(), [(number::NEW_TABLE, 5); 2]);
        two.truncate(whole.len() + 10);
        assert_eq!(replies(&two).count(), 1);
        for length in [0_u32, 3, 15, 4000] {
            let mut lying = whole.clone();
            lying[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(replies(&lying).count(), 0, "{length}");
        }
        assert_eq!(find(&[3, 0, 1, 0], 1), None);
        assert_eq!(find(&[0, 0, 1, 0, 0, 0, 2, 0], 2), None);
    }
}
