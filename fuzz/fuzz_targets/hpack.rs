//! Header blocks of a tunnel's peer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    warren::hbone::fuzz::hpack(data);
});
