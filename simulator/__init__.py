"""An IoT Edge device, an IoT Hub and a vehicle on one laptop, offline; never shipped to a vehicle.

the command      cli ──► simulate (bordnetz simulate), demo (bordnetz demo), check (bordnetz check); control: the second
                 terminal's way in
the deployment   template ──► deployment (what IoT Edge would refuse), layers, routes with their condition
the device       device: identities, twins, sockets of a manifest; agent: module processes, containers instead of them,
                 binds, modulelog; workload: the API on a module's socket, with sockets, secret, certificates
the hub          broker: connections and sessions, by mqtt, connection, identities, sas, acknowledger, memory
                 hub: telemetry, twin, methods; router: routes and queues; telemetry: what the cloud received
the cloud        service: IoT Hub's REST API, with registry; events: an Event-Hubs-like reader
what goes wrong  faults: the switches; switchboard: who throws them, and when; clock: scaled time
the vehicle      vehicle/: databases and drives, from a seed
underneath       http, tasks
"""
