//! Records of a tunnel's peer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    warren::tls::record::fuzz::records(data);
});
