//! What an interrupted `helm uninstall` may have left: the DaemonSet that purges nodes. It would do so again and again, on
//! every node whose agent is just being replaced.

use kube::api::DeleteParams;
use kube::{Api, Client};

use super::object::Meta;
use super::removal::kind;
use super::{BACKOFF, CALL, failed};
use crate::base::{Result, code, deadline};

/// The DaemonSet. It is made only after all agents have ended: beside an agent that starts it is always a left-over.
const PURGE: &str = "warren-purge";

/// Deletes it. Tries until the API server has answered.
pub async fn end_purge(client: Client, namespace: String) {
    let api: Api<Meta> = Api::namespaced_with(client, &namespace, &kind());
    let mut pause = BACKOFF.0;
    loop {
        match delete(&api).await {
            Ok(true) => return tracing::warn!("deleted the DaemonSet {PURGE}, which an interrupted uninstall had left"),
            Ok(false) => return,
            Err(error) if error.code() == &code::API_REFUSED => {
                return tracing::warn!(%error, "if there is a DaemonSet {PURGE}, delete it: it purges nodes whose agent is being replaced");
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// Whether it was there.
async fn delete(api: &Api<Meta>) -> Result<bool> {
    let parameters = DeleteParams::background();
    let asked = api.delete(PURGE, &parameters);
    match deadline(CALL, &code::API_UNAVAILABLE, format!("the API server about DaemonSet {PURGE}"), asked).await? {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(failed(&format!("delete DaemonSet {PURGE}"), error)),
    }
}
