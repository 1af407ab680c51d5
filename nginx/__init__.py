"""Templates of NGINX's configuration: data of the package appliance_nginx, which appliance.front renders."""
