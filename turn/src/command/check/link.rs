//! One socket to a server, with a deadline on everything.
//!
//! In: an address, a transport. Out: datagrams or frames, and the certificates that a server showed. Never: refuses a certificate: what is
//! wrong with it is to be told, and what stands behind it to be tried all the same. No secret goes through.

use crate::settings::Chain;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use turn_core::framing::{Framer, MAX_FRAME};
use turn_core::wire::Transport;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFault {
    Silence,
    /// Refused, reset or ended.
    Closed,
    /// Bytes that are no frames, or no TLS.
    NotOurs,
}

/// How far one came with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Reaching,
    ShakingHands,
    Asking,
}

pub enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream, Framer),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>, Framer),
}

impl Link {
    /// For TLS, the certificates come with it. `host`: for whom TLS asks.
    pub fn open(
        server: SocketAddr,
        host: &str,
        transport: Transport,
        patience: Duration,
    ) -> Result<(Self, Option<Chain>), (Stage, LinkFault)> {
        let reached = match transport {
            Transport::Udp => Self::udp_from(server, None),
            Transport::Tcp | Transport::Tls => Self::tcp(server, patience),
        };
        match reached.map_err(|fault| (Stage::Reaching, fault))? {
            Self::Tcp(stream, framer) if transport == Transport::Tls => {
                let shaken = shake_hands(stream, host, patience);
                let (stream, chain) = shaken.map_err(|fault| (Stage::ShakingHands, fault))?;
                Ok((Self::Tls(Box::new(stream), framer), chain))
            }
            link => Ok((link, None)),
        }
    }

    fn tcp(server: SocketAddr, patience: Duration) -> Result<Self, LinkFault> {
        let stream = TcpStream::connect_timeout(&server, patience).map_err(fault)?;
        stream.set_nodelay(true).map_err(fault)?;
        stream.set_write_timeout(Some(patience)).map_err(fault)?;
        Ok(Self::Tcp(stream, Framer::new(MAX_FRAME)))
    }

    /// From this address of the machine, or from any.
    pub fn udp_from(server: SocketAddr, from: Option<IpAddr>) -> Result<Self, LinkFault> {
        let from = from.map_or(any(server), |from| SocketAddr::new(from, 0));
        let socket = UdpSocket::bind(from).map_err(fault)?;
        socket.connect(server).map_err(fault)?;
        Ok(Self::Udp(socket))
    }

    pub const fn is_stream(&self) -> bool {
        !matches!(self, Self::Udp(_))
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<(), LinkFault> {
        match self {
            // A port that is closed says so by ICMP, to the next call: then the next receive says it again.
            Self::Udp(socket) => socket.send(bytes).map(|_| ()).or_else(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => Ok(()),
                _ => Err(fault(error)),
            }),
            Self::Tcp(stream, _) => stream.write_all(bytes).map_err(fault),
            Self::Tls(stream, _) => stream.write_all(bytes).and_then(|()| stream.flush()).map_err(fault),
        }
    }

    /// Whether bytes came that are no whole frame.
    pub fn holds_half(&self) -> bool {
        match self {
            Self::Udp(_) => false,
            Self::Tcp(_, framer) | Self::Tls(_, framer) => !framer.rest().is_empty(),
        }
    }

    /// One datagram, or one frame.
    pub fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, LinkFault> {
        loop {
            if let Self::Tcp(_, framer) | Self::Tls(_, framer) = self
                && let Some(frame) = framer.next_frame().map_err(|_| LinkFault::NotOurs)?
            {
                return Ok(frame.to_vec());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LinkFault::Silence);
            }
            let read = match self {
                Self::Udp(socket) => {
                    socket.set_read_timeout(Some(left)).map_err(fault)?;
                    let mut room = vec![0; MAX_FRAME];
                    match socket.recv(&mut room) {
                        Ok(length) => {
                            room.truncate(length);
                            return Ok(room);
                        }
                        Err(error) => Err(error),
                    }
                }
                Self::Tcp(stream, framer) => {
                    stream.set_read_timeout(Some(left)).map_err(fault)?;
                    filled(stream, framer)
                }
                Self::Tls(stream, framer) => {
                    stream.sock.set_read_timeout(Some(left)).map_err(fault)?;
                    filled(stream.as_mut(), framer)
                }
            };
            let ended = match read {
                Ok(0) => LinkFault::Closed,
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => fault(error),
            };
            // "HT", as "HTTP/1.1 400" begins, is the number of a channel: such a frame ends before its length.
            return Err(match ended {
                LinkFault::Closed if self.holds_half() => LinkFault::NotOurs,
                ended => ended,
            });
        }
    }
}

/// Whether this machine has a way to addresses of that family. Connecting a UDP socket sends nothing.
pub fn has_route(to: SocketAddr) -> bool {
    UdpSocket::bind(any(to)).is_ok_and(|socket| socket.connect(to).is_ok())
}

fn filled(stream: &mut impl Read, framer: &mut Framer) -> io::Result<usize> {
    let length = stream.read(framer.space())?;
    framer.filled(length);
    Ok(length)
}

fn fault(error: io::Error) -> LinkFault {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => LinkFault::Silence,
        io::ErrorKind::InvalidData => LinkFault::NotOurs,
        _ => LinkFault::Closed,
    }
}

/// Any address and port of this machine, of the family of that one.
pub fn any(of: SocketAddr) -> SocketAddr {
    let ip = match of.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, 0)
}

type Shaken = (StreamOwned<ClientConnection, TcpStream>, Option<Chain>);

fn shake_hands(stream: TcpStream, host: &str, patience: Duration) -> Result<Shaken, LinkFault> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let name = ServerName::try_from(host.to_owned()).map_err(|_| LinkFault::NotOurs)?;
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|_| LinkFault::NotOurs)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything(provider)))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    let connection = ClientConnection::new(Arc::new(config), name).map_err(|_| LinkFault::NotOurs)?;
    let mut stream = StreamOwned::new(connection, stream);
    let deadline = Instant::now() + patience;
    while stream.conn.is_handshaking() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinkFault::Silence);
        }
        stream.sock.set_read_timeout(Some(left)).map_err(fault)?;
        stream.conn.complete_io(&mut stream.sock).map_err(handshake_fault)?;
    }
    let shown = stream.conn.peer_certificates().map(|shown| {
        let shown = shown.iter().map(|certificate| certificate.clone().into_owned());
        Chain::new(shown.collect())
    });
    Ok((stream, shown))
}

/// A server that speaks TLS and refuses is not one that speaks something else.
fn handshake_fault(error: io::Error) -> LinkFault {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidMessage(_)) => LinkFault::NotOurs,
        Some(_) => LinkFault::Closed,
        None => fault(error),
    }
}

/// Takes every certificate: see above. That the server has its key is proven all the same.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
