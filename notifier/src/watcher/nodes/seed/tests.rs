use super::*;
use notifier_core::swarm::NodeListError;
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const LIST: &str = r#"{"id":"0","jsonrpc":"2.0","result":{"height":7,"block_hash":"0000000000000000000000000000000000000000000000000000000000000001","service_node_states":[{"pubkey_x25519":"0101010101010101010101010101010101010101010101010101010101010101","public_ip":"10.0.0.1","storage_lmq_port":22020,"swarm_id":18446744073709551614}]}}"#;

/// A TLS server that reads a request and answers as it is told: (head and body, then how many bytes of `x`, then stay open).
struct Server {
    url: String,
    certificate: String,
    _task: JoinSet<()>,
}

async fn server(answer: impl Into<String>, filler: usize, hang: bool) -> Server {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["seed.example".to_owned()]).unwrap();
    serve(cert, &signing_key, answer.into(), filler, hang).await
}

async fn serve(cert: rcgen::Certificate, key: &KeyPair, answer: String, filler: usize, hang: bool) -> Server {
    let settings = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(settings));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            // Every source is asked like this one.
            let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap();
            assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
            let mut request = vec![0; 4096];
            let Ok(length) = stream.read(&mut request).await else {
                continue;
            };
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            assert!(request.starts_with("POST /json_rpc HTTP/1.1\r\n"), "{request}");
            let _ = stream.write_all(answer.as_bytes()).await;
            let mut left = filler;
            while left > 0 && stream.write_all(&[b'x'; 8192]).await.is_ok() {
                left = left.saturating_sub(8192);
            }
            if hang {
                std::future::pending::<()>().await;
            }
            let _ = stream.shutdown().await;
        }
    });
    Server {
        url,
        certificate: cert.pem(),
        _task: task,
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

async fn ask(server: &Server) -> Result<NodeList, SourceFault> {
    let mut seed = SeedSource::new(&server.url, Some(server.certificate.as_bytes())).unwrap();
    seed.deadline = Duration::from_secs(5);
    seed.list().await
}

#[test]
fn seeds_are_offered_a_key_exchange_that_a_quantum_computer_does_not_break() {
    assert_eq!(
        offered_groups().first().map(String::as_str),
        Some(crate::tls::POST_QUANTUM)
    );
}

#[tokio::test]
async fn a_seed_with_the_pinned_certificate_is_believed_whatever_its_name() {
    let list = ask(&server(ok(LIST), 0, false).await).await.unwrap();
    assert_eq!((list.nodes.len(), list.height), (1, 7));
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused() {
    let (ours, theirs) = (server(ok(LIST), 0, false).await, server(ok(LIST), 0, false).await);
    let seed = SeedSource::new(&theirs.url, Some(ours.certificate.as_bytes())).unwrap();
    assert_eq!(
        seed.list().await.unwrap_err(),
        SourceFault::Seed(SeedFault::WrongCertificate)
    );
}

#[tokio::test]
async fn without_a_pin_a_self_signed_certificate_is_refused() {
    let server = server(ok(LIST), 0, false).await;
    let seed = SeedSource::new(&server.url, None).unwrap();
    assert_eq!(
        seed.list().await.unwrap_err(),
        SourceFault::Seed(SeedFault::WrongCertificate)
    );
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
    let server = server(head, 1_000_000_000, false).await;
    assert_eq!(ask(&server).await.unwrap_err(), SourceFault::Seed(SeedFault::TooLong));
}

#[tokio::test]
async fn an_answer_that_never_ends_has_a_deadline() {
    let server = server("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx", 0, true).await;
    let mut seed = SeedSource::new(&server.url, Some(server.certificate.as_bytes())).unwrap();
    seed.deadline = Duration::from_millis(300);
    assert_eq!(seed.list().await.unwrap_err(), SourceFault::Timeout);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let moved = "HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let server = server(moved, 0, false).await;
    assert_eq!(ask(&server).await.unwrap_err(), SourceFault::Seed(SeedFault::Status));
}

#[tokio::test]
async fn rubbish_is_refused() {
    let refused = async |answer: String| ask(&server(answer, 0, false).await).await.unwrap_err();
    assert_eq!(
        refused("SSH-2.0-OpenSSH\r\n".into()).await,
        SourceFault::Seed(SeedFault::Http)
    );
    assert_eq!(refused(ok("<html>")).await, SourceFault::List(NodeListError::NotJson));
    assert_eq!(
        refused(ok(r#"{"error":{"code":-1}}"#)).await,
        SourceFault::List(NodeListError::MissingField)
    );
    assert_eq!(
        refused("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".into()).await,
        SourceFault::Seed(SeedFault::Http)
    );
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    drop(listener);
    let seed = SeedSource::new(&url, None).unwrap();
    assert_eq!(seed.list().await.unwrap_err(), SourceFault::Unreachable);
}

#[test]
fn only_https_urls_and_pem_certificates_are_taken() {
    for url in [
        "http://seed.example/json_rpc",
        "seed.example",
        "https://",
        "https://user@seed.example/",
        "https://-/",
    ] {
        assert_eq!(SeedSource::new(url, None).err(), Some(SeedFault::BadUrl), "{url}");
    }
    let seed = SeedSource::new("https://seed.example:4443", None).unwrap();
    assert_eq!(
        (seed.host.as_str(), seed.port, seed.path.as_str()),
        ("seed.example", 4443, "/json_rpc")
    );
    assert_eq!(SeedSource::new("https://[::1]/x", None).unwrap().host, "::1");
    for pem in [
        "",
        "no",
        "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
    ] {
        assert_eq!(
            SeedSource::new("https://a", Some(pem.as_bytes())).err(),
            Some(SeedFault::BadCertificate),
            "{pem}"
        );
    }
}
