//! RFC 7541 Appendix C: blocks, the fields that they mean, and the table that they leave.

use super::*;

struct Example {
    block: &'static str,
    fields: &'static [(&'static str, &'static str)],
    /// Newest first.
    table: &'static [(&'static str, &'static str)],
    table_size: usize,
}

fn run(table_size: usize, examples: &[Example]) {
    let mut decoder = decoder();
    let mut update = Vec::new();
    integer::encode(&mut update, 0x20, 5, table_size);
    decode(&mut decoder, &update).unwrap();
    for example in examples {
        assert_eq!(decode(&mut decoder, &hex(example.block)).unwrap(), fields(example.fields), "{}", example.block);
        let table = table(&decoder);
        assert_eq!(table, fields(example.table), "{}", example.block);
        assert_eq!(size(&table), example.table_size, "{}", example.block);
    }
}

#[test]
fn c2_single_fields() {
    for example in [
        Example {
            block: "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            fields: &[("custom-key", "custom-header")],
            table: &[("custom-key", "custom-header")],
            table_size: 55,
        },
        Example { block: "040c 2f73 616d 706c 652f 7061 7468", fields: &[(":path", "/sample/path")], table: &[], table_size: 0 },
        Example { block: "1008 7061 7373 776f 7264 0673 6563 7265 74", fields: &[("password", "secret")], table: &[], table_size: 0 },
        Example { block: "82", fields: &[(":method", "GET")], table: &[], table_size: 0 },
    ] {
        run(4096, &[example]);
    }
    assert_eq!(block(&fields(&[(":path", "/sample/path")])), hex("040c 2f73 616d 706c 652f 7061 7468"));
    assert_eq!(block(&fields(&[(":method", "GET")])), hex("82"));
}

const FIRST_REQUEST: &[(&str, &str)] = &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
const SECOND_REQUEST: &[(&str, &str)] =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com"), ("cache-control", "no-cache")];
const THIRD_REQUEST: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];

/// C.3 and C.4 differ in their strings only.
fn requests(blocks: [&'static str; 3]) {
    let [first, second, third] = blocks;
    run(
        4096,
        &[
            Example { block: first, fields: FIRST_REQUEST, table: &[(":authority", "www.example.com")], table_size: 57 },
            Example {
                block: second,
                fields: SECOND_REQUEST,
                table: &[("cache-control", "no-cache"), (":authority", "www.example.com")],
                table_size: 110,
            },
            Example {
                block: third,
                fields: THIRD_REQUEST,
                table: &[("custom-key", "custom-value"), ("cache-control", "no-cache"), (":authority", "www.example.com")],
                table_size: 164,
            },
        ],
    );
}

#[test]
fn c3_requests_without_huffman() {
    requests([
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ]);
}

#[test]
fn c4_requests_with_huffman() {
    requests([
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ]);
}

const DATE: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
const LATER: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
const LOCATION: (&str, &str) = ("location", "https://www.example.com");
const PRIVATE: (&str, &str) = ("cache-control", "private");
const COOKIE: (&str, &str) = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
const GZIP: (&str, &str) = ("content-encoding", "gzip");

/// C.5 and C.6: a table of 256 bytes, so entries are evicted.
fn responses(blocks: [&'static str; 3]) {
    let [first, second, third] = blocks;
    run(
        256,
        &[
            Example {
                block: first,
                fields: &[(":status", "302"), PRIVATE, DATE, LOCATION],
                table: &[LOCATION, DATE, PRIVATE, (":status", "302")],
                table_size: 222,
            },
            Example {
                block: second,
                fields: &[(":status", "307"), PRIVATE, DATE, LOCATION],
                table: &[(":status", "307"), LOCATION, DATE, PRIVATE],
                table_size: 222,
            },
            Example {
                block: third,
                fields: &[(":status", "200"), PRIVATE, LATER, LOCATION, GZIP, COOKIE],
                table: &[COOKIE, GZIP, LATER],
                table_size: 215,
            },
        ],
    );
}

#[test]
fn c5_responses_without_huffman() {
    responses([
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d
         546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f
         6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b
         2076 6572 7369 6f6e 3d31",
    ]);
}

#[test]
fn c6_responses_with_huffman() {
    responses([
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7
         8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ]);
}
