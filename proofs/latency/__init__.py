"""A process that commits while another one relays."""
