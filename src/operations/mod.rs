//! What keeps the appliance running and tells how it does.
