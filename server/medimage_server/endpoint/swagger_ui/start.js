SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true, // a link leads to one route
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // of swagger.io, which would be sent this server's address
});
