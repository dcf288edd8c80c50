//! Header blocks, with `h2` as the other opinion.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::super::hpack::{Decoder, encode};

const TABLE_SIZE: usize = 4096;
const LIST_SIZE: usize = 64 * 1024;

type Field = (Vec<u8>, Vec<u8>);

/// Decodes `data` as two header blocks of one connection. The list stays within its bound, a decoder that was handed over
/// decodes the same, what was decoded can be encoded, and `h2` takes no request that is not decoded to the same fields.
///
/// The first two bytes cut the rest: what comes before the pseudo fields of the first request, and what belongs to it.
/// Returns how many requests `h2` took.
pub fn hpack(data: &[u8]) -> usize {
    let [before, first, rest @ ..] = data else { return 0 };
    let (first, second) = rest.split_at(usize::from(*first).min(rest.len()));
    let (before, behind) = first.split_at(usize::from(before % 8).min(first.len()));
    let mut start = Vec::new();
    encode(&mut start, b":method", b"CONNECT");
    encode(&mut start, b":authority", b"a:1");
    let blocks = [[before, &start, behind].concat(), [&start, second].concat()];

    let mut decoder = Decoder::new(TABLE_SIZE, LIST_SIZE);
    let ours: Vec<Vec<Field>> = blocks.iter().map_while(|block| ours(&mut decoder, block)).collect();
    let theirs = theirs(&blocks);
    let taken = theirs.len();
    for (stream, theirs) in theirs {
        let mut ours = ours.get(stream as usize / 2).cloned().unwrap_or_default();
        ours.retain(|(name, _)| !name.starts_with(b":"));
        ours.sort();
        assert_eq!(theirs, ours, "the request on stream {stream}");
    }
    taken
}

/// The fields of a block that is well-formed.
fn ours(decoder: &mut Decoder, block: &[u8]) -> Option<Vec<Field>> {
    let mut restored: Decoder = serde_json::to_value(&*decoder).and_then(serde_json::from_value).ok()?;
    let (list, decoded) = fields(decoder, block)?;
    assert!(list.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>() <= LIST_SIZE);
    assert_eq!(fields(&mut restored, block), Some((list.clone(), decoded)));
    assert_eq!(restored, *decoder);
    let mut again = Vec::new();
    list.iter().for_each(|(name, value)| encode(&mut again, name, value));
    assert_eq!(fields(&mut restored, &again), Some((list.clone(), false)));
    Some(list)
}

/// And whether there are more.
fn fields(decoder: &mut Decoder, block: &[u8]) -> Option<(Vec<Field>, bool)> {
    let mut list = Vec::new();
    let decoded = decoder.decode(block, |name, value| list.push((name.to_vec(), value.to_vec()))).ok()?;
    Some((list, decoded.oversized))
}

/// Streams and sorted regular fields of the requests that an `h2` server takes.
fn theirs(blocks: &[Vec<u8>]) -> Vec<(u32, Vec<Field>)> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for (block, stream) in blocks.iter().zip([1u8, 3]) {
        bytes.extend_from_slice(&(block.len() as u32).to_be_bytes()[1..]);
        // HEADERS with END_STREAM and END_HEADERS
        bytes.extend_from_slice(&[1, 5, 0, 0, 0, stream]);
        bytes.extend_from_slice(block);
    }
    let (mut near, far) = duplex(1 << 20);
    let mut taken = Vec::new();
    let Some(Ok(())) = now(near.write_all(&bytes)) else { return taken };
    let Some(Ok(mut server)) = now(h2::server::handshake(far)) else { return taken };
    while let Some(Some(Ok((request, respond)))) = now(accept(&mut server)) {
        let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| (name.as_str().into(), value.as_bytes().into());
        let mut fields: Vec<Field> = request.headers().iter().map(field).collect();
        fields.sort();
        taken.push((respond.stream_id().into(), fields));
    }
    taken
}

type H2 = h2::server::Connection<DuplexStream, bytes::Bytes>;
type Accepted = (http::Request<h2::RecvStream>, h2::server::SendResponse<bytes::Bytes>);

async fn accept(server: &mut H2) -> Option<Result<Accepted, h2::Error>> {
    server.accept().await
}

/// The output of a future for which everything is there.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
