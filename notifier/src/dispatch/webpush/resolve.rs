//! From a name to the addresses that a connection may be made to.
//!
//! In: an origin, the operator's rules. Out: socket addresses that were checked, resolved once. Never: asks a second time for one connection,
//! so that an answer that changes its mind changes nothing.

use futures_util::future::BoxFuture;
use notifier_core::endpoint::{Host, Origin};
use notifier_core::webpush::Guard;
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::sync::Semaphore;

/// Whoever knows addresses of names.
pub trait Resolve: Send + Sync + 'static {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver. Each question holds a thread, so only so many are asked at once.
pub struct SystemResolver(Semaphore);

impl Default for SystemResolver {
    fn default() -> Self {
        Self(Semaphore::new(QUESTIONS))
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let _permit = self.0.acquire().await.map_err(io::Error::other)?;
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.take(ADDRESSES_READ).map(|address| address.ip()).collect())
        })
    }
}

/// Why there is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveFault {
    Unresolved,
    /// Every address is one that the guard refuses.
    Guarded,
}

pub async fn addresses(
    origin: &Origin,
    guard: &Guard,
    resolver: &dyn Resolve,
) -> Result<Vec<SocketAddr>, ResolveFault> {
    let found = match origin.host() {
        Host::Address(address) => vec![*address],
        Host::Name(name) => resolver.resolve(name).await.map_err(|_| ResolveFault::Unresolved)?,
    };
    if found.is_empty() {
        return Err(ResolveFault::Unresolved);
    }
    let permitted: Vec<_> = found
        .into_iter()
        .filter(|address| guard.permits(*address))
        .take(ADDRESSES_TRIED)
        .map(|address| SocketAddr::new(address, origin.port()))
        .collect();
    if permitted.is_empty() {
        return Err(ResolveFault::Guarded);
    }
    Ok(permitted)
}

/// Names that are being resolved at once.
const QUESTIONS: usize = 128;
const ADDRESSES_READ: usize = 16;
const ADDRESSES_TRIED: usize = 4;
