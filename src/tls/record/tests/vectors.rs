//! RFC 8448 §3, the simple 1-RTT handshake: what follows its Finished.

use super::*;

const CLIENT_SECRET: &str = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
const SERVER_SECRET: &str = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";

/// NewSessionTicket.
const SERVER_TICKET: &str = "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d6af8f6b580dcf3d11d63c758db289a\
    015940252f55713e061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca7f2b9fa1b6c0d4a3d03f75e09c30ba1e62972ac46f75f7b981be\
    63439b2999ce13064615139891d5e4c5b406f16e3fc181a77ca475840025db2f0a77f81b5ab05b94c01346755f69232c86519d86cbeeac87aac347d143f9\
    605d64f650db4d023e70e952ca49fe5137121c74bc2697687e248746d6df353005f3bce18696129c8153556b3b6c6779b37bf15985684f";
const CLIENT_DATA: &str = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a297\
    7014bd1e3deae63aeebb21694915e4";
const SERVER_DATA: &str = "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a21c\
    0047c2abf332540dd032e167c2955d";
const CLIENT_ALERT: &str = "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3";
const SERVER_ALERT: &str = "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn sessions() -> (Session, Session) {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256;
    let [client, server] = [CLIENT_SECRET, SERVER_SECRET].map(|secret| move || (Secret::from(bytes(secret)), 0));
    (
        Session::new(End::Client, suite, client(), server(), Vec::new()).unwrap(),
        Session::new(End::Server, suite, server(), client(), Vec::new()).unwrap(),
    )
}

fn payload() -> Vec<u8> {
    (0..50).collect()
}

#[test]
fn the_records_are_opened() {
    let (mut client, mut server) = sessions();
    let mut input = [SERVER_TICKET, SERVER_DATA, SERVER_ALERT].map(bytes).concat();
    assert_eq!(client.open(&mut input).unwrap(), Opened::Nothing { consumed: 227 });
    assert_eq!(client.open(&mut input[227..]).unwrap(), Opened::Data { plaintext: 5..55, consumed: 72 });
    assert_eq!(input[232..282], payload());
    assert_eq!(client.open(&mut input[299..]).unwrap(), Opened::Closed { consumed: 24 });

    let mut input = [CLIENT_DATA, CLIENT_ALERT].map(bytes).concat();
    assert_eq!(server.open(&mut input).unwrap(), Opened::Data { plaintext: 5..55, consumed: 72 });
    assert_eq!(input[5..55], payload());
    assert_eq!(server.open(&mut input[72..]).unwrap(), Opened::Closed { consumed: 24 });
}

#[test]
fn the_same_records_are_sealed() {
    let (mut client, mut server) = sessions();
    let record = [vec![0; HEADER], payload(), vec![0; TRAILER]].concat();
    let mut sealed = record.clone();
    client.seal(&mut sealed).unwrap();
    assert_eq!(sealed, bytes(CLIENT_DATA));
    client.close();
    let mut alert = Vec::new();
    client.pending(&mut alert).unwrap();
    assert_eq!(alert, bytes(CLIENT_ALERT));

    // The server's first record was the ticket.
    let mut ticket = vec![0; 227];
    ticket[HEADER..].fill(1);
    server.write.seal(HANDSHAKE, &mut ticket).unwrap();
    let mut sealed = record;
    server.seal(&mut sealed).unwrap();
    assert_eq!(sealed, bytes(SERVER_DATA));
    server.close();
    let mut alert = Vec::new();
    server.pending(&mut alert).unwrap();
    assert_eq!(alert, bytes(SERVER_ALERT));
}
